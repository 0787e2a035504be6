"""Rows T1 to T4: teachers, labels, students, and what labels cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from reta.bench.measure import Row, Size, Work, flops, ratio, spread, turns
from reta.bench.recovering import committee_of
from reta.bench.reference import ReferenceTraining
from reta.data.distilled import DistilledSet
from reta.data.formats import Bytes, Nibbles, bytes_per_row, information_lost
from reta.data.images import DecodedImages
from reta.models import Classifier, build
from reta.runtime import full_precision, half_precision, mixed_precision
from reta.synthesis.relabel import relabel
from reta.together import train_together
from reta.training import Protocol, fit, soft_loss, train_student, train_teacher


def rows(size: Size, device: torch.device, target: dict[str, float]) -> Iterator[Row]:
    """Measure; ``target`` holds what a suite asks for."""
    yield from _teacher(size, device, target)
    count = 64 if size.cold else 16
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size.side, size.side)
    images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    yield from _labels_and_students(size, device, images, target)
    yield from _storage(size)


def _teacher(size: Size, device: torch.device, target: dict[str, float]) -> Iterator[Row]:
    name, count = ("convnet3", 256) if device.type == "cpu" else ("resnet18", 4096)
    count, side = (count, 32) if size.cold else (32, 16)
    images = torch.randint(0, 256, (count, 3, side, side)).to(torch.uint8)
    data = DecodedImages(images, torch.arange(count) % 2, ("a", "b"))
    one = DecodedImages(images[:2], torch.arange(2), ("a", "b"))
    model = build(name, 2, side).to(device)

    def epoch() -> None:
        train_teacher(model, data, one, Protocol(1), flip=True, seed=0, batch_size=128)

    (times,) = turns(device, size.rounds, epoch)
    rate = [count / value for value in times]
    share = flops(epoch) / median(times) / target["flops"]
    yield Row(
        "T1", f"training {name} on {side} px", median(rate), "images/s", iqr=spread(rate),
        note=f"{share:.0%} of the matmul rate",
    )  # fmt: skip


def _labels_and_students(
    size: Size, device: torch.device, images: torch.Tensor, target: dict[str, float]
) -> Iterator[Row]:
    committee = committee_of(size, device)
    plain_committee: list[Classifier] = []
    for teacher in copy.deepcopy(committee):
        plain_committee.append(teacher.to(memory_format=torch.contiguous_format).train())
    plain = ReferenceTraining(images, ready=device.type == "cuda")
    times = turns(
        device,
        size.rounds,
        lambda: plain.relabel(plain_committee),
        lambda: relabel(committee, images, range(1), seed=0),
    )
    yield ratio(
        "T2",
        f"relabel: plain loop at 2 × 8 / ours, {len(committee)} teachers, {size.side} px",
        times,
        target["T2"],
        at_least=True,
        note=f"{len(images) / median(times[1]):.0f} views/s; teachers in "
        + half_precision(device)[1].partition(":")[0],
    )
    labels = plain.relabel(plain_committee)
    shard = relabel(committee, images, range(1), seed=0)
    classes = tuple(map(str, range(size.classes)))
    data = DistilledSet(images, torch.zeros(len(images)).long(), classes, [shard])
    for name in ("convnet3", "resnet18"):
        model = build(name, size.classes, size.side).to(device)
        plainly = partial(plain.train, copy.deepcopy(model), labels)
        work = partial(_epoch, model, data)
        yield _students(name, size, device, plainly, work, target["T3"], target["flops"])
        if mixed_precision(device)[0] is not None:
            with full_precision():
                yield _students(name, size, device, plainly, work, None, target["flops"])
    yield _several(size, device, data, target)


def _several(size: Size, device: torch.device, data: DistilledSet, target: dict[str, float]) -> Row:
    """Students in one pass; on a CPU they are four times the work, so there is no target."""
    name, few = ("convnet3", 2) if device.type == "cpu" else ("resnet18", len(data))
    own = DecodedImages(data.images[:few], data.labels[:few], data.classes)
    one, *others = (build(name, size.classes, size.side, seed=s).to(device) for s in range(4))
    times = turns(
        device,
        size.rounds,
        lambda: train_together([one, *others], data, own, Protocol(1)),
        lambda: train_student(one, data, own, Protocol(1), seed=0),
    )
    return ratio(
        "T3", f"post-train: 4 students in one pass / one, {name}, {size.side} px", times,
        target.get("T3-4"),
    )  # fmt: skip


def _epoch(model: Classifier, data: DistilledSet) -> None:
    device = model.mean.device
    fit(
        model,
        lambda epoch: data.batches(epoch, device),
        soft_loss(20.0),
        Protocol(1),
        lambda _: None,
        "students",
        short=mixed_precision(device)[0],
    )


def _students(
    name: str,
    size: Size,
    device: torch.device,
    plainly: Work,
    work: Work,
    target: float | None,
    rate: float,
) -> Row:
    times = turns(device, size.rounds, plainly, work)
    share = flops(work) / median(times[1]) / rate
    numbers = mixed_precision(device)[1].partition(":")[0]
    return ratio(
        "T3",
        f"post-train: plain loop at 2 × 8 / ours, {name}, {size.side} px, {numbers}",
        times,
        target,
        at_least=True,
        note=f"{share:.0%} of the matmul rate",
    )


def _storage(size: Size) -> Iterator[Row]:
    classes, rows_ = 1000, 512
    logits = 2.1 * torch.randn(rows_, classes, generator=torch.Generator().manual_seed(0))
    bounds = (
        ("int8", Bytes(), 1.01, 0.0002),
        ("int4", Nibbles(), 0.51, 0.03),
    )
    for name, form, most, lost in bounds:
        yield Row(
            "T4", f"{name} labels: bytes per class and view, {classes} classes",
            bytes_per_row(form, classes) / classes, "bytes", most,
        )  # fmt: skip
        back = form.decode(form.encode(logits), classes)
        yield Row(
            "T4", f"{name} labels: information lost at T = 20", float(
                information_lost(logits, back, 20.0)
            ), "share", lost, note="simulated logits, standard deviation 2.1",
        )  # fmt: skip
    form = Bytes()
    stored = form.encode(logits)
    (times,) = turns(torch.device("cpu"), max(5, size.rounds), lambda: form.decode(stored, classes))
    yield Row("T4", "int8 labels decoded", rows_ / median(times) / 1e6, "million rows/s")
