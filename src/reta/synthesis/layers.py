"""Statistics of what enters every BatchNorm and every convolution of a teacher."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from reta.memory import Passes
from reta.models import Classifier
from reta.synthesis.pool import Pool
from reta.synthesis.probes import group_outputs
from reta.synthesis.statistics import group_statistics

Layer = nn.BatchNorm2d | nn.Conv2d
Statistics = list[torch.Tensor]
"""Of one layer, each ``(g, d)``: mean and variance of each channel; of a convolution also of each
patch of its plane."""


def patch_side(image_size: int) -> int:
    """Return the side of a patch in pixels of a feature map: 4 up to 64 px, 16 above."""
    return 4 if image_size <= 64 else 16


def patch_statistics(maps: torch.Tensor, groups: int, side: int) -> Statistics:
    """Return mean and variance of each patch over a group's images, channels and pixels.

    The maps ``(g·n, c, h, w)`` are resized to a multiple of the side first.

    Returns:
        two tensors ``(g, patches)``.
    """
    height, width = (-(-length // side) * side for length in maps.shape[-2:])
    if (height, width) != tuple(maps.shape[-2:]):
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    cut = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side)).unflatten(0, (groups, -1))
    variance, mean = torch.var_mean(cut, dim=(1, 2, 4, 6), correction=0)
    return [mean.flatten(1), variance.flatten(1)]


class LayerProbe:
    """Reads a teacher's layers by hooks, whatever the network.

    Attributes:
        teacher: frozen, in eval mode.
        layers: its BatchNorm and convolution layers in registration order.
    """

    def __init__(self, teacher: Classifier, side: int) -> None:
        self.teacher, self._side = teacher, side
        self.layers: list[Layer] = [
            part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d | nn.Conv2d)
        ]

    def __call__(
        self, images: torch.Tensor, skip: Collection[int] = ()
    ) -> tuple[torch.Tensor, dict[int, Statistics]]:
        """Run the teacher on groups of images ``(g, n, 3, h, w)``.

        Args:
            images: in [0, 1].
            skip: positions of layers that need not be read.

        Returns:
            logits ``(g, n, classes)``, and the statistics by position of the layer.
        """
        groups, found = len(images), {}
        hooks = []
        for position, layer in enumerate(self.layers):
            if position in skip:
                continue

            def read(
                layer: nn.Module, inputs: tuple[torch.Tensor, ...], position: int = position
            ) -> None:
                statistics = list(group_statistics(inputs[0], groups))
                if isinstance(layer, nn.Conv2d):
                    statistics += patch_statistics(inputs[0], groups, self._side)
                found[position] = statistics

            hooks.append(layer.register_forward_pre_hook(read))
        try:
            logits, _ = group_outputs(self.teacher, images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, dict(sorted(found.items()))


@torch.no_grad()
def real_statistics(
    probe: LayerProbe, pool: Pool, indices: torch.Tensor, skip: Collection[int] = ()
) -> dict[int, Statistics]:
    """Return the statistics over some real images as one group, each ``(d,)`` float32.

    Batches are merged exactly: variances are those of all the images together.
    """
    merged: dict[int, Statistics] = {}
    seen = 0
    device = probe.teacher.mean.device

    def read(part: torch.Tensor) -> tuple[int, dict[int, Statistics]]:
        return len(part), probe(pool.pixels(part).to(device)[None], skip)[1]

    for count, found in Passes(pool.image_size).of(read, indices):
        share = count / (seen + count)
        for position, statistics in found.items():
            own = [value[0].double() for value in statistics]
            merged[position] = merge(merged[position], own, share) if seen else own
        seen += count
    return {
        position: [value.to(device).float() for value in statistics]
        for position, statistics in merged.items()
    }


def merge(old: Sequence[torch.Tensor], new: Sequence[torch.Tensor], share: float) -> Statistics:
    """Return the means and variances of two sets together; ``share`` is that of the second."""
    result = []
    for (a, u), (b, v) in zip(
        zip(old[::2], old[1::2], strict=True), zip(new[::2], new[1::2], strict=True), strict=True
    ):
        difference = b - a
        result += [
            a + share * difference,
            (1 - share) * u + share * v + share * (1 - share) * difference.square(),
        ]
    return result
