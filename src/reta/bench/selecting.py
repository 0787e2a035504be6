"""Rows D1 to D3 and P1: retrieval, the pool, homology."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from reta.bench.measure import Row, Size, ratio, spread, turns
from reta.data.images import StreamedImages, available_cores
from reta.data.sources import open_source
from reta.models import build, freeze
from reta.synthesis.pool import build_pool, look
from reta.synthesis.retrieval import fit_complexity_score
from reta.tensors import read_tensors, tensor_bytes
from reta.topology import diameters
from reta.topology.persistence import homology_pairs


def rows(size: Size, device: torch.device, target: dict[str, float]) -> Iterator[Row]:
    """Measure; ``target`` holds what a suite asks for."""
    yield from _retrieval(size, target)
    yield from _pool(size, device)
    yield from _homology(size, target)


def _retrieval(size: Size, target: dict[str, float]) -> Iterator[Row]:
    cpu = torch.device("cpu")
    counts = [size.pool * share // 8 for share in range(1, 9)]
    queries = torch.randn(50, 512).double()
    times = []
    for count in counts:
        keys, complexity = torch.randn(count, 512).double(), torch.rand(count).double()
        (own,) = turns(
            cpu,
            max(5, size.rounds),
            partial(fit_complexity_score, queries, keys, complexity),
        )
        times.append(own)
    last = [value / len(queries) * 1e3 for value in times[-1]]
    yield Row(
        "D1", f"retrieval, pool of {size.pool} × 512, per query", median(last), "ms",
        target["D1"], iqr=spread(last),
    )  # fmt: skip
    middle = [min(own) for own in times]
    fit = float(np.corrcoef(counts, middle)[0, 1] ** 2)
    yield Row(
        "D1", f"R² of time against {counts[0]} to {counts[-1]} pool images", fit, "R²",
        0.99 if size.cold else None, at_least=True,
    )  # fmt: skip


def _pool(size: Size, device: torch.device) -> Iterator[Row]:
    count, side = (200, 256) if size.cold else (8, 32)
    cores = available_cores()
    teacher = freeze(build("convnet3", 2, 32).to(device))
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for index in range(count):
            path = Path(folder) / f"class{index % 2}" / f"{index}.jpg"
            path.parent.mkdir(exist_ok=True)
            small = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((side, side)).save(path, quality=90)
        decoded, cold = turns(
            device,
            size.rounds,
            lambda: open_source(folder, image_size=32),
            lambda: build_pool(open_source(folder, image_size=32).train, teacher),
        )
        images = open_source(folder, image_size=32).train
        said, _ = look(images, teacher, range(len(images)))
        kept = Path(folder) / "features.safetensors"
        kept.write_bytes(tensor_bytes(said, {}))
        (warm,) = turns(device, 5, lambda: read_tensors(kept))
        yield from _workers(folder, size, min(2, cores))
    for what, times, least in (
        ("decoded", decoded, 600.0 if size.cold and cores > 1 else None),
        ("decoded, with ConvNet features", cold, None),
    ):
        rate = [count / value for value in times]
        yield Row(
            "D2", f"pool of JPEG files of {side} px, {what}", median(rate), "images/s",
            least, at_least=True, iqr=spread(rate), note=f"on {cores} cores",
        )  # fmt: skip
    yield Row(
        "D3", "cold start of a pool / its kept features read", median(cold) / median(warm), "ratio",
        50.0 if size.cold else None, at_least=True,
    )  # fmt: skip


def _workers(folder: str, size: Size, most: int) -> Iterator[Row]:
    """Decoding of a streamed set, which has a process for each core; here, one and two."""
    source = open_source(folder, image_size=32, stream=True).train
    assert isinstance(source, StreamedImages)
    # Each image often: starting the workers would else be part of what is measured.
    parts = torch.arange(len(source)).repeat(10 if size.cold else 1).split(512)

    def decode(workers: int) -> None:
        for _ in StreamedImages(source.listing, source.size, workers).batches(parts):
            pass

    times = turns(torch.device("cpu"), size.rounds, partial(decode, 1), partial(decode, most))
    yield ratio(
        "D2", f"decoding for a streamed set, 1 process / {most}", times,
        1.8 if size.cold and most > 1 else None, at_least=True,
        note=f"{sum(map(len, parts)) / median(times[1]):.0f} images/s",
    )  # fmt: skip


def _homology(size: Size, target: dict[str, float]) -> Iterator[Row]:
    found = []
    classes = 10
    for points in size.points:
        clouds = torch.nn.functional.normalize(torch.randn(classes, points, 512), dim=2)
        lengths = diameters(clouds)
        (own,) = turns(
            torch.device("cpu"),
            max(3, size.rounds),
            partial(homology_pairs, clouds, 15, lengths),
        )
        times = [value / classes * 1e3 for value in own]
        found.append(median(times))
        yield Row(
            "P1", f"homology of a class, {points} points of 512-d, k = 15", found[-1], "ms",
            target.get(f"P1-{points}"), iqr=spread(times),
        )  # fmt: skip
    slope = float(np.polyfit(np.log(size.points), np.log(found), 1)[0])
    yield Row("P1", "growth exponent of homology", slope, "exponent", 1.5 if size.cold else None)
