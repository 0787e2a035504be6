"""What every command prints with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

out = Console(markup=False, highlight=False)

Folder = Annotated[Path, arg(metavar="RUN")]


def say(text: object) -> None:
    """Print a line as it is: no markup in a path, no break in the middle of one."""
    out.print(str(text), soft_wrap=True)


def bytes_(count: float) -> str:
    """Return a size as a person would write it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
