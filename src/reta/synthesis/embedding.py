"""In which space an image is near another: what φ of Eq. 4 may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from reta.errors import UsageError
from reta.memory import Passes
from reta.models import Classifier
from reta.synthesis.pool import Pool

Embedding = Literal["features", "logits", "committee", "pixels", "last", "middle", "coarse"]
"""``features``: the penultimate layer of the first teacher, which the pool keeps. ``logits``: its
last layer. ``committee``: the unit features of every teacher, side by side. ``pixels``: the image
itself, in 8 × 8 cells. ``last``: the features of the last teacher. ``middle``: what enters the
BatchNorm layer halfway through the first teacher, averaged over its places. ``coarse``: its
features of the image at half its resolution, which does not show what only a network sees."""

_CELLS = 8


def embed(images: torch.Tensor, committee: Sequence[Classifier], kind: Embedding) -> torch.Tensor:
    """Return the embedding ``(n, d)`` of images ``(n, 3, s, s)`` in [0, 1]."""
    first = committee[0]
    if kind == "features":
        return first.features(images)
    if kind == "logits":
        logits: torch.Tensor = first(images)
        return logits
    if kind == "pixels":
        cells = F.adaptive_avg_pool2d((images - first.mean) / first.std, _CELLS)
        return cells.flatten(1)
    if kind == "last":
        return committee[-1].features(images)
    if kind == "middle":
        return _middle(first, images)
    if kind == "coarse":
        half = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
        return first.features(F.interpolate(half, images.shape[-2:], mode="bilinear"))
    parts = [F.normalize(teacher.features(images), dim=1) for teacher in committee]
    return torch.cat(parts, dim=1)


def _middle(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return what enters the BatchNorm layer halfway through a teacher, averaged: ``(n, d)``."""
    found: list[torch.Tensor] = []
    layers = teacher.batch_norms()
    if not layers:
        raise UsageError(
            f"{teacher.name} has no BatchNorm layer, and connection.embedding=middle looks at one"
        )

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].mean(dim=(2, 3)))

    hook = layers[len(layers) // 2].register_forward_pre_hook(keep)
    try:
        teacher.features(images)
    finally:
        hook.remove()
    return found[0]


@torch.no_grad()
def embed_class(
    pool: Pool, label: int, committee: Sequence[Classifier], kind: Embedding
) -> torch.Tensor:
    """Return the embedding ``(m, d)`` of a class's real images; beyond features, kept."""
    members = pool.members(label)
    if kind == "features":
        return pool.features[members]

    def compute() -> torch.Tensor:
        like = committee[0].mean  # its device and precision
        if kind == "logits":
            logits: torch.Tensor = committee[0].head(pool.features[members].to(like))
            return logits.cpu()
        found, passes = [], Passes(pool.image_size)

        def seen(part: torch.Tensor) -> torch.Tensor:
            return embed(part.to(like) / 255, committee, kind).cpu()

        for batch in pool.images.batches(members.split(100)):
            found += passes.of(seen, batch)
        return torch.cat(found)

    names = tuple(teacher.name for teacher in committee)
    return pool.once(("embedding", kind, names, label), compute)
