"""Persistent Topology Alignment inside a recipe: which points, which scale, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.memory import Passes
from reta.models import Classifier
from reta.runtime import random_generator
from reta.synthesis.pool import Pool
from reta.topology import diameters, persistence_images, topology_losses


@dataclass(frozen=True)
class Target:
    """The real side of the topology term, as far as synthetic points do not change it.

    Attributes:
        points: ``(classes, n, d)`` features, scaled.
        lengths: ``(classes,)`` ε_max, their diameters.
        images: ``(classes, 2, M, M)`` persistence images, if each side has its own graph.
    """

    points: torch.Tensor
    lengths: torch.Tensor
    images: torch.Tensor | None


@dataclass(frozen=True)
class TopologyAlignment:
    """PTA: match the persistence images of the real and the synthetic features of each class.

    Attributes:
        weight: λ_topo.
        weight_of: whether it weighs the ``loss`` (the paper), or says how long the pixel
            ``gradient`` of the topology term is, as a share of the main one on the same step.
        interval: T, steps between two applications; it is also applied at the end of each block.
        neighbours: k of the mutual k-NN graph.
        points: most points n_c of each side; of more images, the first are aligned.
        loop_weight: γ, weight of degree 1.
        graph: one graph on the ``union`` of both sides, or a ``separate`` one for each.
        essential: classes that never die are ``clip``ped at ε_max or ``drop``ped.
        normalize: whether features are scaled to unit length first.
        image_scale: ``mean`` divides the persistence images by n_c, ``sum`` is the literal Eq. 11.
        image_size: M, side of the persistence image.
        bandwidth: σ of Eq. 10.
        point_weight: w of Eq. 10: a point counts with its ``persistence``, or as ``one``.
        max_length: ε_max; None is the diameter of the real points of each class.
        real_points: a fixed random ``sample`` of the class, or the current ``anchors`` first
            and then the sample. The paper draws from the whole pool, anchors included.
        draws: how many random samples of the class the real persistence image is the mean of. With
            few images per class a single sample is a matter of luck; more need a ``separate``
            graph, since one on the union belongs to one sample.
        spread: apply a T-th of the gradient at each of the T steps instead of all at once.
        teachers: whose features are aligned: the ``first`` one's, or those of the teacher whose
            ``turn`` it is.
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
    point_weight: Literal["persistence", "one"] = "persistence"
    max_length: float | None = None
    real_points: Literal["sample", "anchors"] = "sample"
    draws: int = 1
    spread: bool = False
    weight_of: Literal["loss", "gradient"] = "loss"
    teachers: Literal["first", "turn"] = "first"

    def __post_init__(self) -> None:
        for name in ("interval", "neighbours", "points", "image_size", "bandwidth", "draws"):
            if getattr(self, name) <= 0:
                raise UsageError(f"topology.{name} is {getattr(self, name)}; it must be above 0")
        if self.draws > 1 and (self.graph == "union" or self.real_points == "anchors"):
            raise UsageError("topology.draws above 1 needs graph=separate and real_points=sample")

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
        teacher: Classifier | None = None,
    ) -> torch.Tensor:
        """Return ``(draws, classes, count, d)`` features of real images, the same at every step.

        Args:
            pool: the real images.
            labels: the classes.
            count: n_c, at most the number of images of the smallest class.
            seed: of the run.
            anchors: ``(ipc, classes)`` pool indices of the current anchors, if they come first.
            teacher: whose features; by default those the pool keeps, of the first teacher.
        """
        draws = [
            torch.stack([self._sample(pool, label, seed, draw)[:count] for label in labels])
            for draw in range(self.draws)
        ]
        if anchors is not None and self.real_points == "anchors":
            for row, own in zip(draws[0], anchors.T, strict=True):
                first = own.unique()[:count]
                rest = row[~torch.isin(row, first)]
                row.copy_(torch.cat([first, rest])[:count])
        chosen = torch.stack(draws)
        if teacher is None:
            return pool.features[chosen]
        pixels = pool.pixels(chosen.flatten()).to(teacher.mean.device)
        with torch.no_grad():
            found = torch.cat(Passes(pool.image_size).of(teacher.features, pixels))
        return found.view(*chosen.shape, -1)

    def _sample(self, pool: Pool, label: int, seed: int, draw: int) -> torch.Tensor:
        members = pool.members(label)
        rng = random_generator(seed, "topology", label, draw)
        return members[rng.permutation(len(members))]

    def target(self, real: torch.Tensor) -> Target:
        """Return the real side for features ``(draws, classes, n, d)``, reused at each step."""
        draws, classes = real.shape[:2]
        points = self._scaled(real).flatten(0, 1)
        lengths = diameters(points).view(draws, classes).mean(0)
        if self.max_length is not None:
            lengths = torch.full_like(lengths, self.max_length)
        images = None
        if self.graph == "separate":
            images = persistence_images(
                points,
                k=self.neighbours,
                max_lengths=lengths.repeat(draws),
                size=self.image_size,
                bandwidth=self.bandwidth,
                weight=self.point_weight,
                essential=self.essential,
            )
            images = images.unflatten(0, (draws, classes)).mean(0)
        return Target(points[:classes], lengths, images)

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features, dim=-1) if self.normalize else features

    def gradient(self, features: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
        """Return λ_topo·L_topo of each class and its gradient with respect to the features.

        Args:
            features: ``(classes, n, d)`` of the synthetic images, without a graph.
            target: the real side.

        Returns:
            losses ``(classes,)`` and gradient ``(classes, n, d)``. Knowing the gradient at the
            features first lets each group of images be back-propagated by itself, so memory does
            not grow with ipc.
        """
        leaf = features.detach().requires_grad_()
        losses = self.weight * topology_losses(
            self._scaled(leaf),
            target.points,
            k=self.neighbours,
            max_lengths=target.lengths,
            real_images=target.images,
            size=self.image_size,
            bandwidth=self.bandwidth,
            weight=self.point_weight,
            loop_weight=self.loop_weight,
            essential=self.essential,
            graph=self.graph,
        )
        if self.image_scale == "mean":
            losses = losses / features.shape[1] ** 2
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient
