"""The committee: frozen teachers that answer together, under batch statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from reta.models import Classifier


@contextmanager
def batch_statistics(model: Classifier, group: int) -> Iterator[None]:
    """Let BatchNorm normalise each ``group`` consecutive images by their own statistics.

    This equals a separate forward pass of every group in train mode (FADRM labels halves of 8),
    except that dropout stays off and running statistics stay as they are.
    """

    def forward(layer: nn.BatchNorm2d, inputs: torch.Tensor) -> torch.Tensor:
        if not inputs.is_cuda:
            return torch.cat(
                [_normalised(part, layer, layer.weight, layer.bias) for part in inputs.split(group)]
            )
        # A launch is dear on a GPU: groups become channels, and one call normalises them all.
        groups = len(inputs) // group
        folded = inputs.unflatten(0, (groups, group)).transpose(0, 1).flatten(1, 2)
        many = [
            None if part is None else part.repeat(groups) for part in (layer.weight, layer.bias)
        ]
        normal: torch.Tensor = _normalised(folded, layer, *many).unflatten(1, (groups, -1))
        return normal.transpose(0, 1).flatten(0, 1)

    layers = model.batch_norms()
    for layer in layers:
        layer.forward = forward.__get__(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalised(
    inputs: torch.Tensor,
    layer: nn.BatchNorm2d,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return F.batch_norm(inputs, None, None, weight, bias, training=True, eps=layer.eps)


@torch.no_grad()
def committee_logits(
    committee: Sequence[Classifier],
    views: torch.Tensor,
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the mean logits ``(n, classes)`` of views ``(n, 3, s, s)``.

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
            answers = [teacher(views[begin:end]) for teacher in committee]
        if weights is None:
            logits.append(torch.stack(answers).mean(dim=0))
        else:
            voices = zip(weights, answers, strict=True)
            logits.append(torch.stack([weight * answer for weight, answer in voices]).sum(dim=0))
        begin = end
    return torch.cat(logits)
