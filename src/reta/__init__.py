"""Dataset distillation you can install.

Turn a large set of labelled images into a few synthetic images per class with soft labels, so that
a model trained on them alone comes close to one trained on everything::

    import reta

    folder = reta.distill("./photos", ipc=10)
    data = reta.load(folder)        # a torch Dataset of views and soft labels
    print(reta.evaluate(folder)["accuracy"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from reta.api import adopt, compare, distill, evaluate, plan, report, train, verify
    from reta.config import Config
    from reta.data.distilled import DistilledSet, load
    from reta.methods import METHODS
    from reta.progress import show_progress
    from reta.synthesis.recipe import Recipe

__all__ = [
    "METHODS",
    "Config",
    "DistilledSet",
    "Recipe",
    "adopt",
    "compare",
    "distill",
    "evaluate",
    "load",
    "plan",
    "report",
    "show_progress",
    "train",
    "verify",
]

_HOMES = {
    "METHODS": "reta.methods",
    "Config": "reta.config",
    "DistilledSet": "reta.data.distilled",
    "Recipe": "reta.synthesis.recipe",
    "load": "reta.data.distilled",
    "show_progress": "reta.progress",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a report needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'reta' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "reta.api")), name)
