"""A set that does not fit in memory: how memory grows with it, and what a second worker brings.

    python benchmarks/streaming.py --images 200000 --classes 1000 --out results/streaming.json

generates that many small JPEG files in class folders, opens them as `reta distill --stream` does,
builds the pool shard by shard under a network that costs next to nothing, and samples the memory of
this process on the way (resident pages that belong to no file). Throughput of decoding alone is
measured in this process, with one and two workers and with one and two threads, by turns; the best
round of each counts, because other programs on the machine only ever make a round slower.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from reta.data.images import StreamedImages
from reta.data.intake import square
from reta.data.sources import Source, open_source
from reta.models import freeze, wrap
from reta.preparation import IMAGES_PER_SHARD, open_pool
from reta.runtime import hardware
from reta.storage import RunFolder

SIZE = 64


def generate(root: Path, images: int, classes: int) -> None:
    """Write a tree of small JPEG files; those of a class differ in a few numbers only."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (classes, 6, 6, 3), dtype=np.uint8)
    for label in range(classes):
        folder = root / f"class{label:04d}"
        folder.mkdir(parents=True)
        for index in range(images // classes):
            small = coarse[label] ^ rng.integers(0, 64, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize((SIZE, SIZE)).save(folder / f"{index:05d}.jpg")


def memory(process: str = "self") -> dict[str, float]:
    """Return the resident memory of a process in megabytes: its own, and pages of files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pages = {line.split(":")[0]: float(line.split()[1]) / 1e3 for line in lines if "kB" in line}
    return {"own": pages["RssAnon"], "files": pages["RssFile"]}


class Curve:
    """Memory after so many images."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.seen = 0

    def watch(self, images: StreamedImages, every: int) -> None:
        """Note the memory whenever ``every`` more images were yielded."""
        inner = images.batches

        def batches(parts: Any) -> Any:
            for pixels in inner(parts):
                before, self.seen = self.seen, self.seen + len(pixels)
                if before // every != self.seen // every:
                    self.rows.append({"images": self.seen, **memory()})
                    print(f"{self.seen:>9} images  {memory()['own']:7.0f} MB", flush=True)
                yield pixels

        images.batches = batches  # type: ignore[method-assign]


def rates(source: Source, count: int, rounds: int) -> dict[str, list[int]]:
    """Return the images per second of each round, by way of decoding."""
    listing, size = source.train.listing, source.image_size  # type: ignore[attr-defined]
    parts = torch.arange(count).split(512)

    def streamed(workers: int) -> Callable[[], None]:
        return lambda: (
            [None for _ in StreamedImages(listing, size, workers).batches(parts)] and None
        )

    def threads(number: int) -> None:
        with ThreadPoolExecutor(number) as pool:
            for _ in pool.map(lambda place: square(listing.read(place), size), range(count)):
                pass

    ways: dict[str, Callable[[], None]] = {
        "this process": streamed(0),
        "1 worker": streamed(1),
        "2 workers": streamed(2),
        "1 thread": lambda: threads(1),
        "2 threads": lambda: threads(2),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seen[name].append(count / (time.perf_counter() - start))
    return {name: [round(value) for value in values] for name, values in seen.items()}


def main() -> None:
    """Generate, build the pool, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rated", type=int, default=8_000, help="images to time decoding on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        start = time.perf_counter()
        generate(root / "photos", options.images, options.classes)
        result: dict[str, Any] = {
            "command": f"python benchmarks/streaming.py --images {options.images} "
            f"--classes {options.classes}",
            "hardware": hardware(),
            "seconds_generate": round(time.perf_counter() - start, 1),
        }
        result |= pool_curve(root, options)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "curve"}, indent=1))


def pool_curve(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build the pool of the tree, noting memory; then time decoding."""
    before = memory()
    start = time.perf_counter()
    source = open_source(
        str(root / "photos"), image_size=SIZE, stream=True, workers=options.workers
    )
    opened = time.perf_counter() - start
    layers = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(768, 512)]
    network = nn.Sequential(*layers, nn.Linear(512, len(source.classes)))
    teacher = freeze(wrap(network, len(source.classes), SIZE))
    curve = Curve()
    assert isinstance(source.train, StreamedImages)
    after = memory()
    curve.watch(source.train, max(1, len(source.train) // 40))
    start = time.perf_counter()
    pool = open_pool(source, teacher, "benchmark", RunFolder(root / "run"))
    seconds = time.perf_counter() - start
    members = pool.features[pool.members(len(source.classes) // 2)]
    assert members.isfinite().all()
    own = [row["own"] for row in curve.rows]
    first = sum(row["images"] < IMAGES_PER_SHARD for row in curve.rows) % len(own)
    del source.train.batches  # what was put over the method
    shutil.rmtree(root / "run")
    measured = rates(source, min(options.rated, len(source.train)), 5)
    return {
        "images": len(source.train),
        "test_images": len(source.test),
        "classes": len(source.classes),
        "images_per_shard": IMAGES_PER_SHARD,
        "workers": options.workers,
        "decoded_megabytes": round(len(source.train) * 3 * SIZE**2 / 1e6),
        "megabytes_before": before,
        "megabytes_open": after,
        "megabytes_after_pool": memory(),
        "curve": curve.rows,
        "growth_after_first_shard_megabytes": round(own[-1] - own[first], 1),
        "most_megabytes": max(own),
        "seconds_open": round(opened, 1),
        "seconds_pool": round(seconds, 1),
        "images_per_second": {way: max(values) for way, values in measured.items()},
        "images_per_second_by_round": measured,
    }


if __name__ == "__main__":
    main()
