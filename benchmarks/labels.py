"""What each label format costs, loses and is worth; fills results/labels.json.

    python benchmarks/labels.py digits cifar100-folder:10@16

One FADRM+ set per data set, with exact labels; then the same views in every format, and the same
students on each. So accuracies differ by the format and by rounding alone, and the spread over
student seeds says how much a difference means.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from claims import RESULTS, commit

from reta.config import Config, LabelKind
from reta.data.distilled import DistilledSet, read_images
from reta.data.formats import (
    ONLINE,
    TEMPERATURE,
    Bytes,
    Halves,
    LabelFormat,
    Nibbles,
    Top,
    bytes_per_row,
    information_lost,
)
from reta.data.labels import LabelShard, StoredShard
from reta.data.sources import Source
from reta.executor import Serial
from reta.models import Classifier, build
from reta.parts import Job, class_folders
from reta.pipeline import distill_jobs, keep_config
from reta.preparation import open_data, prepare
from reta.runtime import choose_device, hardware
from reta.storage import RunFolder
from reta.synthesis.relabel import relabel
from reta.training import Protocol, train_student

SEEDS = 3
SETTINGS: dict[str, Any] = {"ipc": 3, "teacher_epochs": 15, "steps": 200, "label_epochs": 100}
HARD = "hard labels"
FORMS: dict[str, LabelFormat | None] = {
    "exact float32": None,
    HARD: None,
    ONLINE: None,
    Halves.name: Halves(),
    Bytes.name: Bytes(),
    Nibbles.name: Nibbles(),
    "topk, 3 of 10": Top(3),
}
KEPT = {"int8, pruned to 1/4": 0.25}


@dataclass(frozen=True)
class World:
    """A distilled set with its teachers and exact labels."""

    source: Source
    committee: list[Classifier]
    images: torch.Tensor
    labels: torch.Tensor
    shard: LabelShard


def parsed(word: str, **settings: Any) -> Config:
    """Return the settings for a word like ``cifar100-folder:10@16``: 10 classes at 16 px."""
    data, _, size = word.partition("@")
    data, _, classes = data.partition(":")
    return Config(
        data,
        classes=int(classes) if classes else None,
        image_size=int(size) if size else None,
        **settings,
    )


def title(source: Source) -> str:
    """Return the name of a set with its classes and pixels."""
    return f"{source.name}, {len(source.classes)} classes, {source.image_size} px"


def distilled(config: Config, source: Source, folder: Path) -> World:
    """Distil with FADRM+ and label exactly."""
    prepared = prepare(config, source, RunFolder(folder), choose_device("cpu"), Serial())
    job = Job(folder / config.method, prepared.config)
    keep_config(job.folder, job.config, source)
    distill_jobs(prepared, [job], Serial())
    images = read_images(job.path, class_folders(source.classes), config.ipc).flatten(0, 1)
    labels = torch.arange(len(source.classes)).repeat_interleave(config.ipc)
    epochs = range(config.label_epochs or 1)
    shard = relabel(prepared.committee, images, epochs, seed=config.seed, flip=source.flip)
    return World(source, prepared.committee, images, labels, shard)


def sets(world: World) -> dict[str, tuple[DistilledSet, float, float]]:
    """Return, by format, the set, bytes per view and training epoch, and the information lost."""
    classes, exact = world.source.classes, world.shard.logits
    assert exact is not None
    epochs = len(world.shard)

    def of(shard: Any, teachers: list[Classifier]) -> DistilledSet:
        return DistilledSet(
            world.images, world.labels, classes, [shard], None, epochs=epochs, teachers=teachers
        )

    def stored(form: LabelFormat, shard: LabelShard) -> StoredShard:
        facts = {"classes": classes, "format": form.name, "top": getattr(form, "count", 1)}
        return StoredShard.read(shard.tensors(form), facts, classes, len(world.images), "labels")

    found: dict[str, tuple[DistilledSet, float, float]] = {}
    for name, form in FORMS.items():
        if name == ONLINE:
            asked = LabelShard(world.shard.epochs, None)
            found[name] = of(asked, world.committee), 0, 0.0
        elif form is None:
            found[name] = of(world.shard, []), 0 if name == HARD else 4 * len(classes), 0.0
        else:
            lost = information_lost(exact, form.decode(form.encode(exact), len(classes)))
            size = bytes_per_row(form, len(classes))
            found[name] = of(stored(form, world.shard), []), size, lost
    for name, share in KEPT.items():
        count = round(share * epochs)
        fewer = LabelShard(world.shard.epochs[:count], exact[:count])
        size = bytes_per_row(Bytes(), len(classes)) * share
        found[name] = of(stored(Bytes(), fewer), []), size, found[Bytes.name][2]
    return found


def measured(
    world: World, data: DistilledSet, config: Config, kind: LabelKind
) -> dict[str, list[float]]:
    """Return last and best accuracy of each student."""
    average, spread = world.source.mean_std
    last, best = [], []
    for seed in range(SEEDS):
        size = world.source.image_size
        model = build("convnet3", len(data.classes), size, mean=average, std=spread, seed=seed)
        protocol = Protocol(data.epochs, config.learning_rate, stretch=config.stretch, labels=kind)
        progress = train_student(model, data, world.source.test, protocol, seed=seed)
        last.append(progress.last)
        best.append(progress.best)
    return {"last": last, "best": best}


def table(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return head and rows of the table in docs/labels.md."""
    head = ["", "bytes per view, 10 classes", "1000 classes"]
    for name in found:
        head += [f"{name}: information lost", "accuracy, %"]
    rows = []
    first = next(iter(found.values()))
    for form in first:
        codec, share = FORMS.get(form, Bytes()), KEPT.get(form, 1.0)
        wide = Top(100 * codec.count) if isinstance(codec, Top) else codec
        large = share * bytes_per_row(wide, 1000) if wide else 100 * first[form]["bytes"]
        row = [form, f"{first[form]['bytes']:.4g}", f"{large:.4g}"]
        for results in found.values():
            lost, last = results[form]["lost"], results[form]["last"]
            row += ["–" if form == HARD else f"{100 * lost:.2g} %"]
            row += [f"{100 * mean(last):.1f} ± {100 * stdev(last):.1f}"]
        rows.append(row)
    return {"head": head, "rows": rows}


def main() -> None:
    """Measure every data set named on the command line and keep the result."""
    found: dict[str, dict[str, Any]] = {}
    for word in sys.argv[1:]:
        config = parsed(word, method="fadrm+", **SETTINGS)
        source = open_data(config)
        name = title(source)
        with tempfile.TemporaryDirectory() as folder:
            world = distilled(config, source, Path(folder))
        found[name] = {}
        for form, (data, size, lost) in sets(world).items():
            accuracy = measured(world, data, config, "hard" if form == HARD else "soft")
            found[name][form] = {"bytes": size, "lost": lost, **accuracy}
            print(name, form, found[name][form], flush=True)
    words = [Path(word).name for word in sys.argv[1:]]
    result = {
        "command": " ".join(["python benchmarks/labels.py", *words]),
        "commit": commit(),
        "hardware": hardware(),
        "settings": {**SETTINGS, "method": "fadrm+", "student": "convnet3", "seeds": SEEDS,
                     "temperature": TEMPERATURE},
        "sets": found,
        "table": table(found),
    }  # fmt: skip
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "labels.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
