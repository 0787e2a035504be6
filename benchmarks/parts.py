"""Ratios of the parts, measured in one run on noise images and random weights; needs no data.

Run with ``make bench``. A and B of each ratio take turns, and medians are compared, so that other
load on the machine hits both alike. Read the numbers with the hardware line above them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torchvision.transforms.v2.functional as tv

from reta.data.augment import random_views, render
from reta.data.images import DecodedImages
from reta.methods import METHODS
from reta.models import Classifier, build, freeze
from reta.runtime import hardware, random_generator
from reta.synthesis.loop import Settings, recover
from reta.synthesis.matching import BatchNormProbe, decoupled_objective
from reta.synthesis.pool import Pool
from reta.synthesis.retrieval import fit_complexity_score
from reta.topology import topology_losses

CLASSES, SIZE, IPC, BATCH = 10, 32, 3, 8


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, a: Callable[[], object], b: Callable[[], object], rounds: int) -> None:
    """Print the median time of a over that of b, taking turns."""
    a(), b()  # warm up
    pairs = [(seconds(a), seconds(b)) for _ in range(rounds)]
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{name:<58} {first / second:5.2f}   ({1e3 * first:.1f} / {1e3 * second:.1f} ms)")


def measure(name: str, work: Callable[[], object], units: int, rounds: int) -> None:
    """Print the median milliseconds per unit."""
    work()
    times = [seconds(work) for _ in range(rounds)]
    print(f"{name:<58} {1e3 * statistics.median(times) / units:5.2f} ms")


def noise_pool(teacher: Classifier) -> Pool:
    """Return a pool of noise images."""
    count = 50 * CLASSES
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(50)
    features = torch.randn(count, teacher.feature_dim, generator=generator)
    real = DecodedImages(images, labels, tuple(map(str, range(CLASSES))))
    return Pool(real, features, torch.rand(count, generator=generator), grey=False)


def main() -> None:
    """Measure and print."""
    facts = hardware()
    print(f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}\n")
    teachers = [freeze(build(name, CLASSES, SIZE)) for name in ("convnet3", "resnet18")]
    images, labels = torch.rand(1, BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % CLASSES
    for teacher in teachers:
        probe = BatchNormProbe(teacher)

        def matched(probe: BatchNormProbe = probe) -> None:
            leaf = images.clone().requires_grad_()
            logits, gap = probe(leaf, 10.0)
            torch.autograd.grad(decoupled_objective(logits, labels, gap, 0.01).sum(), leaf)

        def plain(teacher: Classifier = teacher) -> None:
            leaf = images.clone().requires_grad_()
            logits = teacher(leaf.flatten(0, 1))[None]
            torch.autograd.grad(decoupled_objective(logits, labels, torch.zeros(1), 0).sum(), leaf)

        compare(
            f"step with BN matching / without, {teacher.name}, batch {BATCH}", matched, plain, 5
        )

    teachers = [freeze(build(name, CLASSES, SIZE)) for name in ("convnet3", "convnet4")]
    pool = noise_pool(teachers[0])
    settings = Settings(IPC)
    runs = {}
    for method in ("reta", "fadrm+"):
        schedule = replace(METHODS[method].schedule, steps=40)  # type: ignore[type-var]
        recipe = replace(METHODS[method], schedule=schedule)
        runs[method] = lambda r=recipe: recover(r, teachers, pool, range(CLASSES), settings)
    compare(
        f"recover, RETA (T = 20) / FADRM+, ipc {IPC}, two ConvNets", runs["reta"], runs["fadrm+"], 3
    )

    batch = torch.rand(100, 3, SIZE, SIZE)
    views = random_views(random_generator(0), 100, SIZE)
    boxes = views.boxes.tolist()
    compare(
        "100 random crops, two matmuls / torchvision one by one",
        lambda: render(batch, views, SIZE),
        lambda: [
            tv.resized_crop(x, *b, [SIZE, SIZE], antialias=True)
            for x, b in zip(batch, boxes, strict=True)
        ],
        9,
    )
    for points in (10, 25, 50):
        synthetic, real = torch.randn(2, CLASSES, points, 512)
        leaf = synthetic.requires_grad_()
        measure(
            f"topology loss and gradient, {points} + {points} points of 512-d, per class",
            lambda s=leaf, r=real: torch.autograd.grad(topology_losses(s, r).sum(), s),
            CLASSES,
            5,
        )
    queries, keys, complexity = torch.randn(50, 512), torch.randn(1300, 512), torch.rand(1300)
    measure(
        "retrieval, pool of 1300 × 512, per query",
        lambda: fit_complexity_score(queries, keys, complexity).argmin(1),
        50,
        9,
    )


if __name__ == "__main__":
    main()
