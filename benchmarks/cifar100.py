"""Distil CIFAR-100 with random, fadrm+ and reta, and keep the numbers.

    python benchmarks/cifar100.py PATH/TO/cifar100            # the first 10 classes, for a CPU
    python benchmarks/cifar100.py PATH/TO/cifar100 --whole    # all 100, the paper's networks: a GPU

PATH is any form of the set that reta reads, such as a folder of train.parquet and test.parquet.
Three distillation seeds, two students each; the command can be interrupted and run again. The
comparison goes to runs/, its numbers (teacher accuracy, student accuracy after the last and at the
best epoch, κ, seconds per image, hardware and command) to results/, and from there into the tables
of the documents.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import claims

from reta import cli

METHODS = ("random", "fadrm+", "reta-paper", "reta")
SMALL = "--classes 10 --ipc 3 --teacher-epochs 15 --steps 300 --label-epochs 100"
WHOLE = "--preset cifar100-ipc10"


def command(data: str, out: Path, whole: bool) -> list[str]:
    """Return the words of the `reta compare` command."""
    size = WHOLE if whole else SMALL
    options = f"{size} --seeds 3 --students 2 --methods".split()
    return ["compare", data, *options, *METHODS, "--out", str(out)]


def main() -> None:
    """Run the comparison and keep its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="where CIFAR-100 lies")
    parser.add_argument("--whole", action="store_true", help="all 100 classes; needs a GPU")
    asked = parser.parse_args()
    name = "cifar100-ipc10" if asked.whole else "cifar100-first10-ipc3-three"
    words = command(asked.data, Path("runs") / name, asked.whole)
    sys.argv = ["reta", *words]  # what the results keep as their command
    cli.main(words)
    sys.argv = ["claims.py", f"runs/{name}"]
    claims.main()


if __name__ == "__main__":
    main()
