"""Persistent Topology Alignment inside a recipe: which points, which scale, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.memory import Passes
from reta.models import Classifier
from reta.progress import warn_once
from reta.runtime import random_generator
from reta.synthesis.canvas import Canvas
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


class Aligner:
    """PTA at work on the images of a block of classes.

    Attributes:
        topology: the settings.
        canvas: the images.
        pull: pixel gradient of the topology term while it is spread over steps, or None.
    """

    def __init__(
        self,
        topology: TopologyAlignment,
        canvas: Canvas,
        pool: Pool,
        labels: Sequence[int],
        seed: int,
    ) -> None:
        self.topology, self.canvas = topology, canvas
        self.pull: torch.Tensor | None = None
        self._pool, self._labels, self._seed = pool, list(labels), seed
        self._targets: dict[tuple[int, int], Target] = {}

    def pulled(
        self,
        gradient: torch.Tensor,
        step: int,
        steps: int,
        turn: int,
        anchors: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return a pixel gradient with that of the topology added, and what there is to log.

        Args:
            gradient: of the main objective.
            step: of the block.
            steps: in the block.
            turn: the teacher whose turn it is.
            anchors: current ones, pool indices ``(ipc, classes)``.
        """
        topology, row = self.topology, dict[str, Any]()
        if topology.due(step, steps):
            chosen = turn if topology.teachers == "turn" else 0
            work = partial(self.gradient, anchors, chosen)
            self.pull, row = self.canvas.packed(("align", chosen), work)
            main = gradient.norm().clamp(min=1e-12)
            ratio = self.pull.norm() / main
            if topology.weight_of == "gradient":
                self.pull = self.pull * (topology.weight / ratio.clamp(min=1e-12))
                ratio = self.pull.norm() / main
            row["gradient_ratio"] = float(ratio)
        if self.pull is None:
            return gradient, row
        if topology.spread:
            return gradient + self.pull / topology.interval, row
        whole, self.pull = gradient + self.pull, None
        return whole, row

    def gradient(
        self, anchors: torch.Tensor | None, turn: int = 0
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the pixel gradient of the topology term and its value.

        The gradient at the features is found first, for all images of a class together; each pack
        is then back-propagated by itself, so only one pack's graph is ever held.

        Args:
            anchors: current ones, pool indices ``(ipc, classes)``.
            turn: the teacher whose features are aligned.
        """
        canvas = self.canvas
        # The graph of an only pack can wait; of several, each is made again when its turn comes.
        kept = [canvas.reach(pack, turn) for pack in canvas.packs] if len(canvas.packs) == 1 else []
        seen = [reached for _, reached in kept]
        features = canvas.by_class(seen) if kept else canvas.features(turn)
        at_features, total = torch.zeros_like(features), features.new_zeros(())
        for count, columns in self._point_groups().items():
            target = self._target(turn, count, columns, anchors, features)
            losses, gradient = self.topology.gradient(features[columns, :count], target)
            at_features[columns, :count] = gradient
            total = total + losses.sum()
        pull = torch.zeros_like(canvas.pixels)
        for index, pack in enumerate(canvas.packs):
            if pack.start >= self.topology.points:
                break  # beyond n_c no image is aligned
            leaf, reached = kept[index] if kept else canvas.reach(pack, turn)
            push = at_features.transpose(0, 1)[pack].flatten(0, 1)
            (pull[pack],) = torch.autograd.grad(reached, leaf, push)
        return pull, {"topology": total}

    def _target(
        self,
        turn: int,
        count: int,
        columns: list[int],
        anchors: torch.Tensor | None,
        like: torch.Tensor,
    ) -> Target:
        """Return the real side of the classes that have so many points, made once if it stays."""
        topology, key = self.topology, (turn, count)
        if key not in self._targets or topology.real_points == "anchors":
            labels = [self._labels[column] for column in columns]
            own = None if anchors is None else anchors[:, columns]
            teacher = self.canvas.probes[turn].teacher if turn else None
            real = topology.real_features(self._pool, labels, count, self._seed, own, teacher)
            self._targets[key] = topology.target(real.to(like))
        return self._targets[key]

    def _point_groups(self) -> dict[int, list[int]]:
        """Return n_c, and which classes have it: fewer points where a class has few real images."""
        groups: dict[int, list[int]] = {}
        ipc = self.canvas.batches.ipc
        for column, label in enumerate(self._labels):
            count = min(ipc, self.topology.points, len(self._pool.members(label)))
            if count > 1:
                groups.setdefault(count, []).append(column)
            else:
                warn_once(f"class {label} has one real image: no topology to align it with")
        return groups
