"""What reliability costs: its share of the wall time of a small real distillation.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py --out results/overhead.json

(two minutes on a free core) distils scikit-learn's digits, trains a student and verifies the
folder, while every entrance to the machinery is timed: locks, units with their hashes, fsyncs and
records, kept states, the manifest, the fingerprint of the data, and the passes that are made twice
to see that packing changes no byte. A call inside another one counts once. Not seen: the checks for
NaN, which are a multiplication a step, and the lease's touch of a file every ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

import reta
from reta import storage
from reta.checkpoint import Checkpoint
from reta.config import Config
from reta.data.images import DecodedImages
from reta.pipeline import distill
from reta.runtime import hardware
from reta.storage import RunFolder, Unit
from reta.students import train
from reta.synthesis.packing import Packing

PARTS: dict[str, list[tuple[Any, str]]] = {
    "units": [(Unit, name) for name in ("write", "finish", "forget", "require_space")],
    "records": [(RunFolder, name) for name in ("unit", "record", "records", "finished")],
    "manifest": [(RunFolder, name) for name in ("seal", "manifest")],
    "states": [(Checkpoint, name) for name in ("__init__", "save")],
    "fingerprint": [(DecodedImages, "fingerprint")],
    "packing": [(Packing, "_one_by_one")],
}


class Clock:
    """Seconds by part; what is called inside something that is timed counts there."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._busy = False

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        @wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return call(*args, **kwargs)
            self._busy, start = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start
                self._busy = False

        return measured

    def entered(self, part: str, manager: Callable[..., Any]) -> Callable[..., Any]:
        """Return a context manager of which the ways in and out are timed, not the block."""

        @contextmanager
        def measured(*args: Any, **kwargs: Any) -> Any:
            inner = manager(*args, **kwargs)
            self.timed(part, inner.__enter__)()
            try:
                yield
            finally:
                self.timed(part, inner.__exit__)(None, None, None)

        return measured


def main() -> None:
    """Measure, print, and put the figures into a file of results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    for part, places in PARTS.items():
        for owner, name in places:
            setattr(owner, name, clock.timed(part, getattr(owner, name)))
    storage.held = clock.entered("lock", storage.held)
    config = Config(
        "digits",
        ipc=10,
        teachers=("convnet3",),
        teacher_epochs=3,
        steps=asked.steps,
        label_epochs=100,
        student="convnet3",
        students=1,
    )
    with tempfile.TemporaryDirectory() as place:
        start, busy = time.perf_counter(), time.process_time()
        folder = distill(config, Path(place) / "run", "cpu")
        train(folder, device="cpu")
        whole, computed = time.perf_counter() - start, time.process_time() - busy
        start = time.perf_counter()
        assert reta.verify(folder) == []
        verify = time.perf_counter() - start
    spent = sum(clock.seconds.values())
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    found = {
        "share_percent": round(100 * spent / whole, 2),
        "seconds": round(whole, 1),
        "cpu_seconds": round(computed, 1),
        "overhead_seconds": round(spent, 3),
        "parts_seconds": {part: round(value, 3) for part, value in clock.seconds.items()},
        "verify_seconds": round(verify, 3),
        "run": f"digits, ipc 10, one ConvNet-3 teacher of 3 epochs, {asked.steps} steps, "
        "100 label epochs, one student",
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "hardware": hardware() | {"load_average": [round(load, 1) for load in os.getloadavg()]},
    }
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
