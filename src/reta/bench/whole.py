"""Rows S1, S2 and E1: how cost grows, how long until the first step, and a whole small run."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from reta.bench.measure import Row, Size, ratio, spread, turns
from reta.bench.recovering import again, committee_of, noise_pool, recovery
from reta.config import Config
from reta.data.images import available_cores
from reta.pipeline import distill
from reta.runtime import Stopwatch, choose_device
from reta.students import train

_FIRST_STEP = """
import sys, time
start = time.perf_counter()
from reta.bench.recovering import again, committee_of, noise_pool, recovery
from reta.bench.measure import SIZES
import torch
size, device = SIZES["smoke"], torch.device(sys.argv[1])
committee = committee_of(size, device)
again(recovery("reta-paper", committee, noise_pool(size, 6, committee[0]), size, 1))()
print(time.perf_counter() - start)
"""


def rows(size: Size, device: torch.device) -> Iterator[Row]:
    """Measure."""
    yield from _scaling(size, device)
    if size.cold and device.type == "cpu":
        yield from _workers(size)
    if size.cold:
        command = [sys.executable, "-c", _FIRST_STEP, str(device)]
        runs = [
            float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(3)
        ]
        yield Row(
            "S2", "cold start: import to the first step", median(runs), "s", 6.0,
            iqr=spread(runs), note="another process",
        )  # fmt: skip
        yield _end_to_end(device)


def _scaling(size: Size, device: torch.device) -> Iterator[Row]:
    """FADRM+ does the same work for every image, however many there are."""
    base = replace(size, committee=("convnet3",), side=16, classes=10, ipc=10)
    if not size.cold:
        base = replace(base, classes=4, ipc=4)
    shapes = {
        "ipc 1 to 50": [replace(base, classes=100, ipc=1), replace(base, ipc=50)],
        "10 to 1000 classes": [base, replace(base, classes=100)],
    }
    for name, (few, many) in shapes.items():
        if not size.cold:
            many = replace(few, ipc=2 * few.ipc)
        costs = []
        for shape in (few, many):
            committee = committee_of(shape, device)
            pool = noise_pool(shape, shape.ipc + 2, committee[0])
            made = recovery("fadrm+", committee, pool, shape, 2)
            costs.append((again(made), shape.classes * shape.ipc))
        first, second = turns(device, max(3, size.rounds), *[work for work, _ in costs])
        growth = [(b / costs[1][1]) / (a / costs[0][1]) for a, b in zip(first, second, strict=True)]
        yield Row(
            "S1", f"s/image, {name}, later over earlier", median(growth), "ratio",
            1.05 if size.cold else None, iqr=spread(growth),
            note="blocks of 100 classes are independent and alike beyond" if "classes" in name
            else "a BN group of 100 classes at ipc 1; of 10 classes at ipc 50",
        )  # fmt: skip


_block: list[Callable[[], object]] = []


def _prepare(size: Size) -> None:
    torch.set_num_threads(1)
    choose_device("cpu")
    committee = committee_of(size, torch.device("cpu"))
    pool = noise_pool(size, size.ipc + 2, committee[0])
    _block[:] = [again(recovery("fadrm+", committee, pool, size, 10))]


def _recover() -> None:
    _block[0]()


def _multiply() -> None:
    a = torch.ones(512, 512)
    for _ in range(300):
        a @ a


def _workers(size: Size) -> Iterator[Row]:
    """Blocks of classes recovered by processes of one thread, a block each.

    Beside them products that stay in a core's own cache: what they lose no program can gain.
    """
    cpu, cores = torch.device("cpu"), min(8, available_cores())
    block = replace(size, committee=("convnet3",), classes=10, ipc=3)
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        # Pools of one, because nothing in a pool of many deals each of them one task.
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, _prepare, (block,)))
            for _ in range(cores)
        ]

        def side_by_side(work: Callable[[], None], count: int) -> None:
            for done in [pool.submit(work) for pool in pools[:count]]:
                done.result()

        counts = [count for count in (1, 2, 4, 8) if count <= cores]
        works = [partial(side_by_side, one, count) for one in (_recover, _multiply)
                 for count in counts]  # fmt: skip
        times = turns(cpu, size.rounds, *works)
    recovering, multiplying = times[: len(counts)], times[len(counts) :]
    for index, count in enumerate(counts[1:], start=1):
        yield ratio(
            "S1", f"core-s/image of recovery, {count} processes / 1",
            [recovering[index], recovering[0]], 1.05, note="a block of classes and a core each",
        )  # fmt: skip
        yield ratio(
            "S1", f"core-s of products in the cache, {count} processes / 1",
            [multiplying[index], multiplying[0]], note="the machine's own share in D2 and S1",
        )  # fmt: skip


def _end_to_end(device: torch.device) -> Row:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        run = distill(Config("digits", ipc=3, effort="smoke"), Path(folder) / "run", str(device))
        accuracy = train(run, device=str(device))["accuracy"]["last_mean"]
    return Row(
        "E1", "digits, ipc 3, effort smoke: teachers, images, labels, a student",
        watch.seconds, "s", 60.0, note=f"accuracy {accuracy:.1%}",
    )  # fmt: skip
