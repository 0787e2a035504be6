"""In which space an image is near another: what φ of Eq. 4 may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from reta.memory import Passes
from reta.models import Classifier
from reta.synthesis.pool import Pool

Embedding = Literal["features", "logits", "committee", "pixels"]
"""``features``: the penultimate layer of the first teacher, which the pool keeps. ``logits``: its
last layer. ``committee``: the unit features of every teacher, side by side. ``pixels``: the image
itself, in 8 × 8 cells."""

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
    parts = [F.normalize(teacher.features(images), dim=1) for teacher in committee]
    return torch.cat(parts, dim=1)


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
