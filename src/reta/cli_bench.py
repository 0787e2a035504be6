"""The part of the `reta` command that measures reta itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from reta.terminal import say


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

    show_progress(False)  # of the works that are measured; a line for each row is enough
    result = suites.run(suite, smoke)
    if json is not None:
        atomic_write(json, json_bytes(result))
    say(suites.table(result))
