"""Choose the students' learning rate and cosine without test images; fills results/protocol.json.

    python benchmarks/protocol.py digits cifar100-folder:10@16

A quarter of the real training images of each class is held out. Teachers are trained and sets
distilled from the rest, and students are measured on the held-out part: on random real images and
on FADRM+'s, so that the choice favours no method. The pair with the best mean last-epoch accuracy
is to be the protocol `default`, the defaults of `Config`. Test images are never looked at.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from claims import RESULTS, commit
from labels import World, distilled, parsed, title

from reta.data.distilled import DistilledSet
from reta.data.images import DecodedImages
from reta.data.sources import Source
from reta.models import build
from reta.preparation import open_data
from reta.runtime import hardware, random_generator
from reta.storage import fingerprint
from reta.training import Protocol, train_student

RATES = (5e-4, 1e-3, 2e-3)
STRETCHES = (1.0, 2.0)
METHODS = ("random", "fadrm+")
SEEDS = 2
HELD = 0.25
SETTINGS: dict[str, Any] = {"ipc": 3, "teacher_epochs": 8, "steps": 100, "label_epochs": 40}


def held_out(source: Source) -> Source:
    """Return a source whose test images are training images put aside, a quarter of each class."""
    train = source.train
    assert isinstance(train, DecodedImages)
    aside = torch.zeros(len(train), dtype=torch.bool)
    for label in range(len(train.classes)):
        own = train.of_class(label)
        order = random_generator(0, "protocol", label).permutation(len(own))
        aside[own[torch.from_numpy(order[: round(HELD * len(own))])]] = True
    rest, held = (
        DecodedImages(train.images[part], train.labels[part], train.classes)
        for part in (~aside, aside)
    )
    mark = fingerprint(["a quarter held out", source.fingerprint])
    return replace(source, train=rest, test=held, fingerprint=mark)


def accuracies(world: World, rate: float, stretch: float) -> list[float]:
    """Return the last-epoch accuracy of each student on the held-out images."""
    source, found = world.source, []
    average, spread = source.mean_std
    data = DistilledSet(world.images, world.labels, source.classes, [world.shard], None)
    for seed in range(SEEDS):
        model = build(
            "convnet3", len(source.classes), source.image_size, mean=average, std=spread, seed=seed
        )
        protocol = Protocol(data.epochs, rate, stretch=stretch)
        found.append(train_student(model, data, source.test, protocol, seed=seed).last)
    return found


def table(found: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, Any]:
    """Return the mean accuracy of each pair, over methods and students, by data set."""
    rows = []
    for rate, stretch in product(RATES, STRETCHES):
        pair = f"{rate:g}, {stretch:g}"
        means = [
            mean(mean(values[pair]) for values in methods.values()) for methods in found.values()
        ]
        rows.append([pair, *(f"{100 * value:.1f}" for value in (*means, mean(means)))])
    return {"head": ["learning rate, η", *found, "mean"], "rows": rows}


def main() -> None:
    """Measure every data set named on the command line and keep the result."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for word in sys.argv[1:]:
        config = parsed(word, **SETTINGS)
        source = held_out(open_data(config))
        name = title(source)
        found[name] = {}
        with tempfile.TemporaryDirectory() as folder:
            for method in METHODS:
                world = distilled(replace(config, method=method), source, Path(folder))
                found[name][method] = {
                    f"{rate:g}, {stretch:g}": accuracies(world, rate, stretch)
                    for rate, stretch in product(RATES, STRETCHES)
                }
                print(name, method, found[name][method], flush=True)
    words = [Path(word).name for word in sys.argv[1:]]
    result = {
        "command": " ".join(["python benchmarks/protocol.py", *words]),
        "commit": commit(),
        "hardware": hardware(),
        "settings": {**SETTINGS, "student": "convnet3", "seeds": SEEDS, "held_out": HELD},
        "held_out_accuracy": found,
        "table": table(found),
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "protocol.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
