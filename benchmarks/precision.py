r"""Short numbers against float32: labels, students and teachers, seed by seed.

    python benchmarks/precision.py --seeds 60 --epochs 20 --out results/precision-digits.json
    python benchmarks/precision.py --seeds 60 --data <CIFAR-100> --classes 10 --image-size 16 \
        --ipc 5 --method fadrm+ --out results/precision-cifar100-first10.json

distils a set, labels its views in float16 and in float32, and trains students and teachers in
bfloat16 and in float32 from the same weights on the same views. Where the device has no short
numbers both columns are alike. What is measured is added to the results as it comes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from reta.bench.measure import commit
from reta.config import Config
from reta.data.distilled import DistilledSet, load
from reta.data.formats import Bytes, information_lost
from reta.data.sources import Source
from reta.models import Classifier, Task, preferred_layout, read
from reta.pipeline import distill
from reta.progress import show_progress
from reta.runtime import (
    choose_device,
    full_precision,
    half_precision,
    hardware,
    mixed_precision,
    short_numbers,
)
from reta.squeeze import build_for, task_of
from reta.students import open_run
from reta.synthesis.relabel import relabel
from reta.training import Protocol, train_student, train_teacher

TEMPERATURES = (1.0, 4.0, 20.0)


def labels(run: Path, task: Task, images: torch.Tensor) -> dict[str, Any]:
    """Return the share of the labels' information that float16, and that 8 bits, leave out."""
    files = sorted((run / "teachers").glob("*.safetensors"))
    teachers = [model.to(memory_format=preferred_layout(model)) for model in
                (read(file, task)[0] for file in files)]  # fmt: skip
    short = relabel(teachers, images, range(4), seed=0).logits
    with full_precision():
        exact = relabel(teachers, images, range(4), seed=0).logits
    assert short is not None
    assert exact is not None
    exact = exact.flatten(0, 1)
    stored = Bytes().decode(Bytes().encode(exact), exact.shape[1])
    return {
        f"T={temperature:g}": {
            "short": float(information_lost(exact, short.flatten(0, 1), temperature)),
            "int8": float(information_lost(exact, stored, temperature)),
        }
        for temperature in TEMPERATURES
    }


def paired(seeds: int, train: Callable[[int], float]) -> Iterator[dict[str, Any]]:
    """Yield last accuracies in short numbers and in float32, and their mean difference so far."""
    short, full = [], []
    for seed in range(seeds):
        with short_numbers():
            short.append(train(seed))
        with full_precision():
            full.append(train(seed))
        differences = [a - b for a, b in zip(short, full, strict=True)]
        if seed:
            yield {
                "short": short,
                "float32": full,
                "difference": mean(differences),
                "standard_error": stdev(differences) / len(differences) ** 0.5,
            }


def student(data: DistilledSet, source: Source, name: str, seed: int) -> float:
    """Return the last test accuracy of a student."""
    model: Classifier = build_for(task_of(source), name, seed)
    protocol = Protocol(data.epochs, stretch=2.0, checks="end")
    return train_student(model, data, source.test, protocol, seed=seed).last


def teacher(source: Source, seed: int) -> float:
    """Return the last test accuracy of a teacher."""
    model: Classifier = build_for(task_of(source), "convnet3", 100 + seed)
    return train_teacher(
        model, source.train, source.test, Protocol(10), flip=source.flip, seed=seed
    ).last


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="a name, a folder or a file of images")
    parser.add_argument("--classes", type=int, help="the first so many only")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--method", default="reta")
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--epochs", type=int, default=60, help="of labels, and of the students")
    parser.add_argument("--seeds", type=int, default=12, help="pairs of students")
    parser.add_argument("--teachers", type=int, default=0, help="pairs of teachers")
    parser.add_argument("--out", type=Path, default=Path("results/precision.json"))
    options = parser.parse_args()
    show_progress(False)
    device = choose_device("cpu").torch
    with short_numbers():
        numbers = [half_precision(device)[1], mixed_precision(device)[1]]
    config = Config(
        options.data, options.method, options.ipc, image_size=options.image_size,
        classes=options.classes, effort="small", steps=60, teacher_epochs=10,
        label_epochs=options.epochs,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with short_numbers():  # the set is the same for both columns
            run = distill(config, Path(folder) / "run", "cpu")
        source, data = open_run(run).source, load(run, temperature=None)
        result = {
            "numbers": numbers,
            "labels": labels(run, task_of(source), data.images),
            "settings": asdict(config) | {"data": Path(options.data).name},
            "student": options.student,
            "hardware": hardware(),
            "commit": commit(),
        }
        parts = {
            "students": (options.seeds, lambda seed: student(data, source, options.student, seed)),
            "teachers": (options.teachers, lambda seed: teacher(source, seed)),
        }
        for part, (seeds, train) in parts.items():
            for found in paired(seeds, train):
                result[part] = found
                options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
