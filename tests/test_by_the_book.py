"""Relabel and train, written a second time from FADRM's description alone, must agree."""

from __future__ import annotations

import copy
import math

import torch
import torchvision.transforms.v2.functional as tv

from reta.data.distilled import DistilledSet
from reta.data.labels import LabelShard
from reta.models import Classifier, build
from reta.runtime import full_precision
from reta.synthesis.relabel import relabel
from reta.training import Protocol, train_student
from small_world import make_images, make_teacher

COUNT, CLASSES, SIZE, EPOCHS = 24, 3, 16, 3
RATE, STRETCH = 1e-3, 2.0


def by_the_book(
    images: torch.Tensor, shard: LabelShard, teachers: list[Classifier], student: Classifier
) -> None:
    """Label and train one batch of 16 after the other, a view, a half and a step at a time."""
    teachers = [copy.deepcopy(teacher).train() for teacher in teachers]  # batch statistics
    weights = [p for n, p in student.named_parameters() if "weight" in n and p.ndim > 1]
    others = [p for n, p in student.named_parameters() if not ("weight" in n and p.ndim > 1)]
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    )
    student.train()
    for e in range(EPOCHS):
        record = shard.epoch(e)
        views = []
        for position in range(COUNT):
            image = images[record.order[position]].float() / 255
            view = tv.resized_crop(image, *record.views.boxes[position].tolist(), [SIZE, SIZE])
            views.append(tv.horizontal_flip(view) if record.views.flips[position] else view)
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * e / (EPOCHS * STRETCH)))
        for start in range(0, COUNT, 16):
            batch = torch.stack(views[start : start + 16])
            partners = record.mix.partners[start : start + 16] - start
            top, left, height, width = record.mix.boxes[start].tolist()  # one box for the batch
            box = (..., slice(top, top + height), slice(left, left + width))
            mixed = batch.clone()
            mixed[box] = batch[partners][box]
            optimiser.zero_grad()
            halves = mixed.split(8)
            for half in halves:
                with torch.no_grad():
                    logits = sum(teacher(half) for teacher in teachers) / len(teachers)
                soft = (logits / 20).softmax(1)
                own = (student(half) / 20).log_softmax(1)
                loss = (soft * (soft.log() - own)).sum(1).mean()  # no factor 20²
                (loss / len(halves)).backward()
            optimiser.step()


def test_relabel_and_train_do_what_is_written() -> None:
    """Any of: halves of 8, train mode, CutMix, T = 20 without T², what decays, the cosine."""
    found = make_images(CLASSES, COUNT // CLASSES, SIZE, seed=4)
    order = found.labels.argsort(stable=True)
    images, labels = found.pixels(order), found.labels[order]
    teachers = [make_teacher(1, CLASSES), make_teacher(2, CLASSES)]
    ours, theirs, fresh = (build("convnet3", CLASSES, SIZE, seed=5) for _ in range(3))
    with full_precision():
        shard = relabel(teachers, images, range(EPOCHS), seed=0)
        data = DistilledSet(images, labels, found.classes, [shard], None)
        train_student(ours, data, found, Protocol(EPOCHS, RATE, stretch=STRETCH), seed=0)
    by_the_book(images, shard, teachers, theirs)
    moved = {name: value - dict(fresh.named_parameters())[name] for name, value in
             theirs.named_parameters()}  # fmt: skip
    for name, value in ours.named_parameters():
        if name.startswith("trunk") and name.endswith("0.bias"):
            continue  # BatchNorm follows: no gradient but rounding, which Adam makes a step of
        apart = (value - dict(theirs.named_parameters())[name]).norm()
        assert apart < 0.02 * moved[name].norm(), name
    for name, value in ours.named_buffers():
        twin = dict(theirs.named_buffers())[name]
        torch.testing.assert_close(value, twin, rtol=1e-2, atol=1e-3, msg=name)
