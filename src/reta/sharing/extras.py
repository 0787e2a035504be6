"""Libraries that only some need, imported where they are used and nowhere else."""

from __future__ import annotations

import importlib
from typing import Any

from reta.errors import UsageError


def optional(module: str, extra: str) -> Any:
    """Return an optional library.

    Raises:
        UsageError: if it is not installed, naming what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs {module}: pip install 'reta[{extra}]'") from error
