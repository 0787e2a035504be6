"""Soft labels of augmented views: what was shown, what the teachers said, and how it is stored.

The views are recorded, not replayed from a random generator, so labels stay valid whatever the
batch size, the order of reading or the version of a library.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from reta.data.augment import Mix, Views, cutmix, random_mix, random_views, render
from reta.runtime import random_generator

LabelFormat = Literal["int8", "float16"]

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


def quantize(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Store each row of logits ``(..., classes)`` in 8 bits a class.

    Returns:
        codes uint8 ``(..., classes)``, and low end and step, float16 ``(...)``: a row is
        ``low + step · codes``.
    """
    low = logits.amin(dim=-1).half()
    step = ((logits.amax(dim=-1) - low.float()) / 255).half()
    # A step rounded down to zero (equal logits) would divide by zero.
    scale = step.float().clamp(min=1e-7).unsqueeze(-1)
    codes = ((logits - low.float().unsqueeze(-1)) / scale).round().clamp(0, 255)
    return codes.to(torch.uint8), low, step


def dequantize(codes: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return logits ``(..., classes)`` float32 from `quantize`."""
    return low.float().unsqueeze(-1) + step.float().unsqueeze(-1) * codes.float()


@dataclass(frozen=True)
class LabelShard:
    """Some consecutive epochs of views with the committee's logits.

    Attributes:
        epochs: the views of each epoch.
        logits: ``(epochs, n, classes)`` float32, by position.
    """

    epochs: list[Epoch]
    logits: torch.Tensor

    def tensors(self, form: LabelFormat) -> dict[str, torch.Tensor]:
        """Return the shard as tensors for a safetensors file."""
        stack = {
            "order": torch.stack([epoch.order for epoch in self.epochs]).int(),
            "boxes": torch.stack([epoch.views.boxes for epoch in self.epochs]).short(),
            "flips": torch.stack([epoch.views.flips for epoch in self.epochs]),
            "partners": torch.stack([epoch.mix.partners for epoch in self.epochs]).int(),
            "mix_boxes": torch.stack([epoch.mix.boxes for epoch in self.epochs]).short(),
        }
        if form == "float16":
            return stack | {"logits": self.logits.half()}
        codes, low, step = quantize(self.logits)
        return stack | {"codes": codes, "low": low, "step": step}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> LabelShard:
        """Read back what `tensors` returned."""
        if "codes" in tensors:
            logits = dequantize(tensors["codes"], tensors["low"], tensors["step"])
        else:
            logits = tensors["logits"].float()
        order, boxes = tensors["order"].long(), tensors["boxes"].long()
        partners, mix_boxes = tensors["partners"].long(), tensors["mix_boxes"].long()
        none = torch.zeros(order.shape[1], 2, dtype=torch.int64)
        epochs = [
            Epoch(
                order[index],
                Views(boxes[index], tensors["flips"][index], none),
                Mix(partners[index], mix_boxes[index]),
            )
            for index in range(len(order))
        ]
        return cls(epochs, logits)
