"""Does ``--compiled`` make a recover step faster? FADRM's step, ours, and ours compiled, in turns.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py                 some six minutes on a CPU
    python benchmarks/compiled.py --device cuda --side 224          with CUDA graphs

A distillation compiles once for each teacher, resolution and number of images in a pass, so what
counts is after how many steps the saving has paid for it: of the paper's 2,000 a teacher of four at
two resolutions has 250 for each block of classes. FADRM's step is plain, hooks and all
(`reta.bench.reference`). Written to results/compiled.json; ``--smoke`` keeps nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from reta.bench.measure import PAPER, commit, machine, spread, turns
from reta.bench.reference import CopyingHook, hooked_loss
from reta.models import build, freeze, preferred_layout
from reta.progress import track
from reta.runtime import choose_device
from reta.synthesis.matching import decoupled_objective
from reta.synthesis.probes import Probe, probe

RESULTS = Path(__file__).parents[1] / "results"
CLASSES = 10

Step = Callable[[torch.Tensor], torch.Tensor]


def gradient_of(loss: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    """Return what gives the gradient of a loss at images."""

    def step(images: torch.Tensor) -> torch.Tensor:
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        return gradient

    return step


def measure(name: str, side: int, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the milliseconds of the three steps of a teacher, and the seconds of compiling."""
    torch.compiler.reset()
    teacher = freeze(build(name, CLASSES, side).to(device))
    labels = torch.arange(batch, device=device) % CLASSES
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator).to(device)
    hooked = copy.deepcopy(teacher)
    hooks = [CopyingHook(layer) for layer in hooked.batch_norms()]
    teacher.to(memory_format=preferred_layout(teacher))

    def loss(own: Probe, leaf: torch.Tensor) -> torch.Tensor:
        logits, gap = own(leaf[None], 10.0)
        return decoupled_objective(logits, labels, gap, 0.01).sum()

    steps = {
        "plain": gradient_of(lambda leaf: hooked_loss(hooked, hooks, leaf, labels)),
        "compiled": gradient_of(partial(loss, probe(teacher, compiled=True))),
        "ours": gradient_of(partial(loss, probe(teacher))),
    }
    start = time.perf_counter()
    compiled = steps["compiled"](images)
    seconds = time.perf_counter() - start
    reference = steps["ours"](images)
    times = turns(device, rounds, *(lambda step=step: step(images) for step in steps.values()))
    taken = {which: median(own) for which, own in zip(steps, times, strict=True)}
    saving = taken["ours"] - taken["compiled"]
    pairs = [a / b for a, b in zip(times[1], times[2], strict=True)]
    return {
        "teacher": name,
        "milliseconds": {which: 1e3 * value for which, value in taken.items()},
        "compiled_over_ours": median(pairs),
        "quartiles": spread(pairs),
        "compile_seconds": seconds,
        "steps_to_pay": seconds / saving if saving > 0 else None,
        "difference": float((compiled - reference).norm() / reference.norm()),
    }


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "compiled.json")
    asked = parser.parse_args()
    device = choose_device(asked.device).torch
    names = ("convnet3",) if asked.smoke else ("convnet3", *PAPER)
    side, batch, rounds = (16, 4, 2) if asked.smoke else (asked.side, asked.batch, asked.rounds)
    rows = []
    for name in track(names, "compiling", len(names)):
        rows.append(measure(name, side, batch, rounds, device))
        print(json.dumps(rows[-1]))
    result = {
        "rows": rows,
        "side": side,
        "batch": batch,
        "rounds": rounds,
        "command": f"python benchmarks/compiled.py {shlex.join(sys.argv[1:])}".strip(),
        "machine": machine(device),
        "commit": commit(),
    }
    if not asked.smoke:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
