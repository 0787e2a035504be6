"""The committee: frozen teachers that answer together, under batch statistics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby

import torch

from reta.memory import Halving
from reta.models import Classifier, batch_statistics
from reta.runtime import autocast, half_precision


@torch.no_grad()
def committee_logits(
    committee: Sequence[Classifier],
    views: torch.Tensor,
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the mean logits ``(n, classes)`` of views ``(n, 3, s, s)``.

    Teachers compute in float16 where the device does (`half_precision`), but for one that leaves
    its range.

    Args:
        committee: the teachers.
        views: in [0, 1].
        sizes: of the consecutive micro-batches that are normalised together; they add up to n.
        weights: of the teachers, that add up to 1; all alike by default.
    """
    logits = []
    begin = 0
    for size, run in groupby(sizes):  # micro-batches of one size share forward passes
        count = len(list(run))
        own = views[begin : begin + size * count]

        def answer(part: slice, own: torch.Tensor = own, size: int = size) -> torch.Tensor:
            return _mean_logits(committee, own[part.start * size : part.stop * size], size, weights)

        logits += Halving(f"micro-batches of {size} views")(answer, count)
        begin += size * count
    return torch.cat(logits)


def _mean_logits(
    committee: Sequence[Classifier],
    views: torch.Tensor,
    size: int,
    weights: Sequence[float] | None,
) -> torch.Tensor:
    """Return the mean logits of views of which each ``size`` are normalised together."""
    with ExitStack() as stack:
        for teacher in committee:
            stack.enter_context(batch_statistics(teacher, size))
        answers = [_answer(teacher, views) for teacher in committee]
    if weights is None:
        return torch.stack(answers).mean(dim=0)
    voices = zip(weights, answers, strict=True)
    return torch.stack([weight * answer for weight, answer in voices]).sum(dim=0)


def _answer(teacher: Classifier, views: torch.Tensor) -> torch.Tensor:
    short, _ = half_precision(views.device)
    if short is not None:
        with autocast(views.device, short):
            logits: torch.Tensor = teacher(views)
        if logits.isfinite().all():
            return logits
    logits = teacher(views)
    return logits
