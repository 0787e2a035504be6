"""Persistent Topology Alignment inside a recipe: which points, which scale, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.runtime import random_generator, warn_once
from reta.synthesis.pool import Pool
from reta.topology import topology_losses


@dataclass(frozen=True)
class TopologyAlignment:
    """PTA: match the persistence images of the real and the synthetic features of each class.

    Attributes:
        weight: λ_topo.
        interval: T, steps between two applications; it is also applied at the end of each block.
        neighbours: k of the mutual k-NN graph.
        points: most points n_c taken of each side.
        loop_weight: γ, weight of degree 1.
        graph: one graph on the ``union`` of both sides, or a ``separate`` one for each.
        essential: classes that never die are ``clip``ped at ε_max or ``drop``ped.
        normalize: whether features are scaled to unit length first.
        image_scale: ``mean`` divides the persistence images by n_c, ``sum`` is the literal Eq. 11.
        image_size: M, side of the persistence image.
        bandwidth: σ of Eq. 10.
        real_points: a fixed random ``sample`` of the class, or the current ``anchors`` first.
        spread: apply a T-th of the gradient at each of the T steps instead of all at once.
    """

    weight: float = 0.5
    interval: int = 20
    neighbours: int = 15
    points: int = 100
    loop_weight: float = 1.0
    graph: Literal["union", "separate"] = "union"
    essential: Literal["clip", "drop"] = "clip"
    normalize: bool = True
    image_scale: Literal["mean", "sum"] = "mean"
    image_size: int = 32
    bandwidth: float = 0.05
    real_points: Literal["sample", "anchors"] = "sample"
    spread: bool = False

    def __post_init__(self) -> None:
        for name in ("interval", "neighbours", "points", "image_size", "bandwidth"):
            if getattr(self, name) <= 0:
                raise UsageError(f"topology.{name} is {getattr(self, name)}; it must be above 0")

    def due(self, step: int, steps: int) -> bool:
        """Return whether to apply at a step of a block."""
        return step % self.interval == 0 or step == steps - 1

    def real_features(
        self,
        pool: Pool,
        labels: Sequence[int],
        count: int,
        seed: int,
        anchors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``(classes, count, d)`` features of real images, the same at every step.

        Args:
            pool: the real images.
            labels: the classes.
            count: n_c; a class with fewer images repeats some, and repeated points are born and
                merged at once, so they add nothing to a diagram.
            seed: of the run.
            anchors: ``(ipc, classes)`` pool indices of the current anchors, if they come first.
        """
        chosen = []
        for column, label in enumerate(labels):
            members = pool.members(label)
            order = members[random_generator(seed, "topology", label).permutation(len(members))]
            if anchors is not None and self.real_points == "anchors":
                first = anchors[:, column].unique()
                order = torch.cat([first, order[~torch.isin(order, first)]])
            chosen.append(order[torch.arange(count) % len(order)])
        return pool.features[torch.stack(chosen)]

    def gradient(
        self, features: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return λ_topo·L_topo of each class and its gradient with respect to the features.

        Args:
            features: ``(classes, n, d)`` of the synthetic images, without a graph.
            real: ``(classes, n, d)``.

        Returns:
            losses ``(classes,)`` and gradient ``(classes, n, d)``. Knowing the gradient at the
            features first lets each group of images be back-propagated by itself, so memory does
            not grow with ipc.
        """
        count = features.shape[1]
        if count < 2:
            warn_once("one synthetic image per class has no topology: the PTA term is 0")
            return features.new_zeros(len(features)), torch.zeros_like(features)
        leaf = features.detach().requires_grad_()
        points, targets = leaf, real.to(leaf)
        if self.normalize:
            points, targets = F.normalize(points, dim=2), F.normalize(targets, dim=2)
        losses = self.weight * topology_losses(
            points,
            targets,
            k=self.neighbours,
            size=self.image_size,
            bandwidth=self.bandwidth,
            loop_weight=self.loop_weight,
            essential=self.essential,
            graph=self.graph,
        )
        if self.image_scale == "mean":
            losses = losses / count**2
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient
