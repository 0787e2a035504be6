"""Soft labels of augmented views: what was shown, what the teachers said, and how it is stored.

The views are recorded, not replayed from a random generator, so labels stay valid whatever the
batch size, the order of reading or the version of a library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from reta.data.augment import Mix, Views, cutmix, random_mix, random_views, render
from reta.data.formats import FORMATS, LabelFormat, Layout, label_format
from reta.errors import DataError, DivergedError
from reta.runtime import random_generator

BATCH = 16
MICRO_BATCH = 8


@dataclass(frozen=True)
class Epoch:
    """How n images are shown once each: in which order, cut how, mixed with which other.

    Attributes:
        order: ``(n,)`` int64, the image at each position.
        views: of the image at each position.
        mix: CutMix partners, as positions within the same batch of 16.
    """

    order: torch.Tensor
    views: Views
    mix: Mix

    def render(self, images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the views ``(m, 3, s, s)`` in [0, 1] at some positions.

        Args:
            images: ``(n, 3, s, s)`` uint8, all synthetic images.
            positions: ``(m,)`` int64.
        """
        both = torch.cat([positions, self.mix.partners[positions]])
        needed, where = both.unique(return_inverse=True)
        pixels = images[self.order[needed].to(images.device)].float() / 255
        views = render(pixels, self.views[needed], images.shape[-1])
        own, other = views[where.to(images.device)].chunk(2)
        return cutmix(own, other, self.mix.boxes[positions])

    def hard_targets(
        self, labels: torch.Tensor, positions: torch.Tensor, classes: int, size: int
    ) -> torch.Tensor:
        """Return the classes of the views at some positions as probabilities ``(m, classes)``.

        A view is of its own image's class to the share of its area that CutMix left, and of its
        partner's to the rest.

        Args:
            labels: ``(n,)`` int64 class of each synthetic image.
            positions: ``(m,)`` int64.
            classes: how many there are.
            size: side of the views, in pixels.
        """
        own = F.one_hot(labels[self.order[positions]], classes)
        other = F.one_hot(labels[self.order[self.mix.partners[positions]]], classes)
        boxes = self.mix.boxes[positions]
        mixed = (boxes[:, 2] * boxes[:, 3] / size**2).unsqueeze(1)
        return (1 - mixed) * own + mixed * other


def draw_epoch(
    seed: int, epoch: int, count: int, size: int, crop: tuple[float, float], flip: bool
) -> Epoch:
    """Draw the views of one epoch; the same for the same seed and epoch."""
    rng = random_generator(seed, "labels", epoch)
    order = torch.from_numpy(rng.permutation(count))
    views = random_views(rng, count, size, scale=crop, flip=flip)
    return Epoch(order, views, random_mix(rng, count, size, BATCH))


def micro_batches(count: int) -> list[list[slice]]:
    """Cut an epoch into batches of 16 positions, each in micro-batches of 8.

    Teachers label, and students train, with the batch statistics of the same micro-batch. A
    single left-over image joins the one before, because one image alone has no statistics.
    """
    bounds = [*range(0, count, MICRO_BATCH), count]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
        del bounds[-2]
    pieces = [slice(a, b) for a, b in pairwise(bounds)]
    batches: dict[int, list[slice]] = {}
    for piece in pieces:
        batches.setdefault(piece.start // BATCH, []).append(piece)
    return list(batches.values())


class Labels(Protocol):
    """Some consecutive epochs of views, and what the committee said of them."""

    def __len__(self) -> int:
        """How many epochs."""

    def epoch(self, index: int) -> Epoch:
        """Return the views of an epoch."""

    def decode(self, index: int, positions: slice) -> torch.Tensor:
        """Return the logits ``(m, classes)`` float32 of some positions of an epoch."""


# The record of the views, the same whatever the format of the logits: type and shape of a row.
_RECORD: Layout = {
    "order": (torch.int32, ()),
    "boxes": (torch.int16, (4,)),
    "flips": (torch.bool, ()),
    "partners": (torch.int32, ()),
    "mix_boxes": (torch.int16, (4,)),
}


@dataclass(frozen=True)
class LabelShard:
    """Labels as the committee gave them.

    Attributes:
        epochs: the views of each epoch.
        logits: ``(epochs, n, classes)`` float32, by position; None if teachers answer later.
    """

    epochs: list[Epoch]
    logits: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.epochs)

    def epoch(self, index: int) -> Epoch:
        """Return the views of an epoch."""
        return self.epochs[index]

    def decode(self, index: int, positions: slice) -> torch.Tensor:
        """Return the logits ``(m, classes)`` of some positions of an epoch."""
        assert self.logits is not None, "labels without logits: ask the teachers"
        return self.logits[index, positions]

    def tensors(self, form: LabelFormat | None) -> dict[str, torch.Tensor]:
        """Return the shard as tensors for a safetensors file.

        Args:
            form: how logits are stored; None leaves them out.

        Raises:
            DivergedError: if a logit is no number, or too large for the format.
        """
        stack = {
            "order": torch.stack([epoch.order for epoch in self.epochs]),
            "boxes": torch.stack([epoch.views.boxes for epoch in self.epochs]),
            "flips": torch.stack([epoch.views.flips for epoch in self.epochs]),
            "partners": torch.stack([epoch.mix.partners for epoch in self.epochs]),
            "mix_boxes": torch.stack([epoch.mix.boxes for epoch in self.epochs]),
        }
        record = {name: tensor.to(_RECORD[name][0]) for name, tensor in stack.items()}
        if form is None:
            return record
        assert self.logits is not None
        encoded = form.encode(self.logits)
        if not _finite(self.logits, *encoded.values()):
            raise DivergedError(
                "the teachers gave labels that are no finite numbers; train them again with a "
                "lower learning rate"
            )
        return record | encoded


class StoredShard:
    """Labels as they lie in a file: checked once, decoded a slice at a time.

    Reading them draws nothing at random: order, crops, flips and CutMix are all in the record.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], form: LabelFormat | None, classes: int
    ) -> None:
        self._tensors, self._form, self._classes = dict(tensors), form, classes

    @classmethod
    def read(
        cls,
        tensors: Mapping[str, torch.Tensor],
        facts: Mapping[str, Any],
        classes: tuple[str, ...],
        count: int,
        where: str,
    ) -> StoredShard:
        """Check what a label file holds, and wrap it.

        Args:
            tensors: of the file.
            facts: of the file.
            classes: names that the labels must be for, in order.
            count: synthetic images that are labelled.
            where: the file, for messages.

        Raises:
            DataError: if the classes are others, or a tensor is missing, of another type or shape,
                not finite, or points outside the images.
        """
        if tuple(facts.get("classes", ())) != classes:
            raise DataError(
                f"{where}: labels are for {facts.get('classes')}, images for {list(classes)}"
            )
        if facts.get("format") not in FORMATS:
            raise DataError(f"{where}: labels of an unknown format, {facts.get('format')!r}")
        form = label_format(facts["format"], int(facts.get("top", 1)))
        layout = {**_RECORD, **(form.layout(len(classes)) if form else {})}
        epochs = len(tensors["order"]) if tensors.get("order", torch.tensor(0)).ndim else 0
        if set(tensors) != set(layout):
            raise DataError(f"{where}: holds {sorted(tensors)}, expected {sorted(layout)}")
        for name, (kind, shape) in layout.items():
            tensor, wanted = tensors[name], (epochs, count, *shape)
            if tensor.dtype != kind or tuple(tensor.shape) != wanted or not epochs:
                raise DataError(
                    f"{where}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {kind} "
                    f"{wanted if epochs else '(epochs, images, …)'}"
                )
        for name, most in (("order", count), ("partners", count), ("indices", len(classes))):
            if name in tensors and not ((tensors[name] >= 0) & (tensors[name] < most)).all():
                raise DataError(f"{where}: {name} must lie between 0 and {most - 1}")
        if not _finite(*tensors.values()) or not (tensors["boxes"][..., 2:] > 0).all():
            raise DataError(f"{where}: holds logits or crops that are no sizes or numbers")
        return cls(tensors, form, len(classes))

    def __len__(self) -> int:
        return len(self._tensors["order"])

    def epoch(self, index: int) -> Epoch:
        """Return the views of an epoch."""
        order, boxes, flips, partners, mix_boxes = (self._tensors[name][index] for name in _RECORD)
        no_shift = torch.zeros(len(order), 2, dtype=torch.int64)
        return Epoch(
            order.long(),
            Views(boxes.long(), flips, no_shift),
            Mix(partners.long(), mix_boxes.long()),
        )

    def decode(self, index: int, positions: slice) -> torch.Tensor:
        """Return the logits ``(m, classes)`` of some positions of an epoch."""
        assert self._form is not None, "labels without logits: ask the teachers"
        stored = {
            name: self._tensors[name][index, positions] for name in self._form.layout(self._classes)
        }
        return self._form.decode(stored, self._classes)


def _finite(*tensors: torch.Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())
