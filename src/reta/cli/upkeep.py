"""Commands for run folders that exist, and for reta itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from reta.api import report as make_report
from reta.api import verify as find_problems
from reta.cli.terminal import Folder, say
from reta.errors import DataError
from reta.storage import MANIFEST


def report(folder: Positional[Folder]) -> None:
    """Rebuild report.html of a run or comparison folder; needs no GPU and no data.

    Args:
        folder: run or comparison folder.
    """
    say(make_report(folder))


def verify(folder: Positional[Folder]) -> None:
    """Compare every file of a run folder with the hash made when it was written.

    Args:
        folder: run or comparison folder, or one that holds several.
    """
    problems = find_problems(folder)
    for problem in problems:
        say(problem)
    if problems:
        say("repair: the same `reta distill` or `reta compare` command again, then `reta train`")
        sys.exit(DataError.exit_code)
    inside = sorted(path.parent.name for path in Path(folder).glob(f"*/**/{MANIFEST}"))
    say(f"{folder}: intact" + (f", with {', '.join(inside)}" if inside else ""))


def unlock(folder: Positional[Folder], force: bool = False) -> None:
    """Free a run folder whose process is gone; rarely needed, as a new run does it by itself.

    Args:
        folder: run or comparison folder.
        force: take it from a process that still gives signs of life, say on a machine you cannot
            reach; it stops within half a minute.
    """
    from reta.lease import unlock as free

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    free(folder, force)
    say(f"{folder}: free")


def bench(
    suite: str = "cpu",
    json: Annotated[Path | None, arg(metavar="FILE")] = None,
    smoke: bool = False,
) -> None:
    """Measure what each part costs, on noise and random weights, against plain versions of it.

    About eight minutes on two cores. Rows are ratios of paths that took turns, or absolute figures
    to be read with the machine's name; docs/performance.md explains them.

    Example: reta bench --suite cpu --json bench.json

    Args:
        suite: cpu, or gpu for ImageNet sizes on a CUDA device.
        json: file for all rows, quartiles, the machine and the commit.
        smoke: tiny sizes, to see that it runs; the figures mean nothing.
    """
    from reta import bench as suites
    from reta.progress import show_progress
    from reta.storage import atomic_write, json_bytes

    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)  # fails now, not after eight minutes
    show_progress(False)  # of the works that are measured; a line for each row is enough
    result = suites.run(suite, smoke)
    if json is not None:
        atomic_write(json, json_bytes(result))
    say(suites.table(result))
