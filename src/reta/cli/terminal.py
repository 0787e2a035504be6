"""What every command prints with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from reta.mirror import local

out = Console(markup=False, highlight=False)

# A path or a URL; what works on it sees a path, see `reta.mirror`.
_WHERE = PrimitiveConstructorSpec[Path](
    nargs=1,
    metavar="DIR",
    instance_from_str=lambda words: local(words[0]),
    is_instance=lambda value: isinstance(value, Path),
    str_from_instance=lambda path: [str(path)],
)
Folder = Annotated[Path, _WHERE, arg(metavar="RUN")]
Out = Annotated[Annotated[Path, _WHERE] | None, arg(name="out", metavar="DIR")]


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
