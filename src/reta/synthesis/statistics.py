"""Means and variances of activations, per group of images and channel, at the cost of a read."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def moments(activation: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the biased variance of each channel over each group; no gradient.

    ``torch.var_mean`` over three axes gives the same numbers, but on a CPU strides through memory
    and is some ten times slower than the kernel behind BatchNorm's own batch statistics. Both pass
    twice, mean and then squared deviations, so they stay exact where the one-pass E[x²] − E[x]²
    would cancel. On a GPU a launch is dear, and one call serves all groups.

    Args:
        activation: ``(g·n, c, h, w)`` in either memory layout.
        groups: g; images of a group are consecutive.

    Returns:
        mean and variance, each ``(g, c)``; float32 at least, whatever the activation's type.
    """
    dtype = torch.promote_types(activation.dtype, torch.float32)
    if activation.device.type != "cpu":
        # In float32 first: the results of a shorter type would be rounded to it.
        grouped = activation.to(dtype).unflatten(0, (groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0)
        return mean, variance
    parts = [
        torch.batch_norm_update_stats(part, None, None, 0.0) for part in activation.chunk(groups)
    ]
    means, variances = zip(*parts, strict=True)
    return torch.stack(means).to(dtype), torch.stack(variances).to(dtype)


def moments_map(
    activation: torch.Tensor,
    mean: torch.Tensor,
    mean_gradient: torch.Tensor,
    variance_gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a and b of ∂L/∂x = ∂L/∂μ / N + ∂L/∂v · 2 (x − μ) / N = a + b·x.

    Args:
        activation: x, ``(g·n, c, h, w)``.
        mean: μ, ``(g, c)``.
        mean_gradient: ∂L/∂μ.
        variance_gradient: ∂L/∂v.

    Returns:
        a and b, ``(g·n, c, 1, 1)``, or ``(1, c, 1, 1)`` for a single group.
    """
    groups, channels = mean.shape
    count = activation.numel() // (groups * channels)
    slope = variance_gradient * (2 / count)
    offset = mean_gradient / count - slope * mean
    images = len(activation) // groups if groups > 1 else 1
    offset, slope = (
        part.to(activation.dtype).repeat_interleave(images, dim=0)[:, :, None, None]
        for part in (offset, slope)
    )
    return offset, slope


class GroupStatistics(torch.autograd.Function):
    """`moments` with a gradient; nothing is kept but the activation, which others keep anyway."""

    @staticmethod
    def forward(
        ctx: Any, activation: torch.Tensor, groups: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and variances, each ``(g, c)``."""
        mean, variance = moments(activation, groups)
        ctx.save_for_backward(activation, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, mean_gradient: torch.Tensor, variance_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """Return the gradient at the activation."""
        activation, mean = ctx.saved_tensors
        offset, slope = moments_map(activation, mean, mean_gradient, variance_gradient)
        return torch.addcmul(offset, slope, activation), None


def group_statistics(activation: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the biased variance of each channel over each group.

    Args:
        activation: ``(g·n, c, h, w)``.
        groups: g; images of a group are consecutive.

    Returns:
        mean and variance, each ``(g, c)``, differentiable once.
    """
    mean, variance = GroupStatistics.apply(activation, groups)
    return mean, variance
