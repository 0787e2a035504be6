"""BatchNorm over groups of a batch: one forward pass that equals a separate pass of each group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reta.models.classifier import Classifier


def can_group(model: Classifier) -> bool:
    """Return whether `batch_statistics` finds every layer of a model that mixes its images."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    return all(type(part) is nn.BatchNorm2d and part.momentum is not None for part in norms)


@contextmanager
def batch_statistics(
    model: Classifier, group: int, *, running: bool = False, folded: bool | None = None
) -> Iterator[None]:
    """Let BatchNorm normalise each ``group`` consecutive images by their own statistics.

    This equals a separate forward pass of every group in train mode (FADRM labels, and trains, in
    halves of 8). Dropout is as the model's mode says.

    Args:
        model: its BatchNorm layers are changed for as long as the block lasts.
        group: images in each; it divides the batch.
        running: whether running statistics move, group after group.
        folded: whether groups become channels, so that one call normalises them all: on a GPU,
            where a launch is dear. Without, each group is a call, which copies less.
    """

    def forward(layer: nn.BatchNorm2d, inputs: torch.Tensor) -> torch.Tensor:
        if running and layer.num_batches_tracked is not None:
            layer.num_batches_tracked += len(inputs) // group
        if inputs.device.type != "cpu" if folded is None else folded:
            return _folded(layer, inputs, group, running)
        if len(inputs) == group:
            return _normalised(layer, inputs, running)
        return torch.cat([_normalised(layer, part, running) for part in inputs.split(group)])

    layers = model.batch_norms()
    for layer in layers:
        layer.forward = forward.__get__(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalised(layer: nn.BatchNorm2d, inputs: torch.Tensor, running: bool) -> torch.Tensor:
    mean, variance = (layer.running_mean, layer.running_var) if running else (None, None)
    return F.batch_norm(
        inputs, mean, variance, layer.weight, layer.bias, True, layer.momentum or 0.0, layer.eps
    )


def _folded(layer: nn.BatchNorm2d, inputs: torch.Tensor, group: int, running: bool) -> torch.Tensor:
    groups = len(inputs) // group
    folded = inputs.unflatten(0, (groups, group)).transpose(0, 1).flatten(1, 2)

    def many(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.repeat(groups)

    own = (layer.running_mean, layer.running_var) if running else (None, None)
    mean, variance = map(many, own)
    momentum = layer.momentum or 0.0
    result: torch.Tensor = F.batch_norm(
        folded, mean, variance, many(layer.weight), many(layer.bias), True, momentum, layer.eps
    )
    for part, each in zip(own, (mean, variance), strict=True):
        if part is not None and each is not None:
            # Each group moved a copy by m; one after another they move the original further.
            steps = (each.view(groups, -1) - part) * _shares(part, groups, momentum)[:, None]
            part.add_(steps.sum(dim=0))
    result = result.unflatten(1, (groups, -1)).transpose(0, 1)
    return result.flatten(0, 1)


def _shares(like: torch.Tensor, groups: int, momentum: float) -> torch.Tensor:
    """Return (1 − m)^(g − 1 − i): what the groups after group i leave of its step."""
    left = torch.arange(groups - 1, -1, -1, dtype=like.dtype, device=like.device)
    return (1 - momentum) ** left
