"""The committee: frozen teachers that answer together, under batch statistics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby

import torch

from reta.models import Classifier, batch_statistics
from reta.runtime import half_precision


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
        end = begin + size * len(list(run))
        with ExitStack() as stack:
            for teacher in committee:
                stack.enter_context(batch_statistics(teacher, size))
            answers = [_answer(teacher, views[begin:end]) for teacher in committee]
        if weights is None:
            logits.append(torch.stack(answers).mean(dim=0))
        else:
            voices = zip(weights, answers, strict=True)
            logits.append(torch.stack([weight * answer for weight, answer in voices]).sum(dim=0))
        begin = end
    return torch.cat(logits)


def _answer(teacher: Classifier, views: torch.Tensor) -> torch.Tensor:
    short, _ = half_precision(views.device)
    if short is not None:
        with torch.autocast(views.device.type, short):
            logits: torch.Tensor = teacher(views)
        if logits.isfinite().all():
            return logits
    with torch.autocast(views.device.type, enabled=False):
        logits = teacher(views)
    return logits
