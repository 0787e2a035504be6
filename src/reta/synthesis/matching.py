"""Eq. 1: what synthetic images are optimised against, a teacher's classes and its statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from reta.synthesis.pool import Pool
from reta.synthesis.probes import Probe


def decoupled_objective(
    logits: torch.Tensor, labels: torch.Tensor, gap: torch.Tensor, weight: float
) -> torch.Tensor:
    """Eq. 1: cross-entropy plus the weighted alignment term, for each BN group.

    L = CE(T(a(x)), y) + β · R_align(x; T)

    Args:
        logits: ``(g, n, classes)`` of the teacher on the augmented images.
        labels: ``(n,)`` int64, the same for every group.
        gap: ``(g,)`` alignment term of each group, see `batchnorm_gap`.
        weight: β.

    Returns:
        ``(g,)``; groups are independent, so their losses are summed, not averaged.
    """
    groups, images, _ = logits.shape
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(groups), reduction="none")
    return loss.view(groups, images).mean(dim=1) + weight * gap


@dataclass(frozen=True)
class Scene:
    """What an objective works on: a block of classes, seen by the teachers of a recipe.

    Attributes:
        probes: one for each teacher.
        pool: the real images.
        labels: the classes of the block.
        ipc: images per class.
        seed: of the run.
    """

    probes: Sequence[Probe]
    pool: Pool
    labels: Sequence[int]
    ipc: int
    seed: int

    @property
    def device(self) -> torch.device:
        """Where the teachers are."""
        return self.probes[0].teacher.mean.device


@dataclass(frozen=True)
class Turn:
    """Which part of a block's images an objective is given.

    Attributes:
        step: counted over the whole budget.
        labels: ``(n,)`` int64, the class of each image of a group, the same for every group.
        groups: which of the block's groups these are.
    """

    step: int
    labels: torch.Tensor
    groups: range


class Matcher:
    """An objective at work on one block of classes; this plain one asks one teacher at a time.

    A method whose objective remembers something, or asks several teachers, has its own.
    """

    def __init__(self, objective: Matching, scene: Scene) -> None:
        self.objective, self.scene = objective, scene

    @property
    def turns(self) -> int:
        """Steps after which every teacher was asked."""
        return len(self.scene.probes)

    def asked(self, step: int) -> list[int]:
        """Return which teachers are asked at a step."""
        return [step % len(self.scene.probes)]

    def __call__(self, images: torch.Tensor, turn: Turn) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return what groups of augmented images ``(g, n, 3, h, w)`` cost.

        Returns:
            the loss and, for the log, its alignment term, both ``(g,)``; and what is to be
            remembered if the step is completed.
        """
        (teacher,) = self.asked(turn.step)
        return (*self.objective(self.scene.probes[teacher], images, turn.labels), None)

    def remember(self, news: Sequence[Any]) -> None:
        """Take over what the parts of a step gave; called once the pixels have moved."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what is remembered, to be kept between two steps."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go back to what was kept."""


@dataclass(frozen=True)
class Matching:
    """The decoupled objective with FADRM's settings.

    Attributes:
        bn_weight: β, weight of the alignment term.
        first_weight: extra weight of the first layer.
        crop: range of the share of the area that the random resized crop keeps.
        easy_first: begin with whole images and let the smallest crop fall to that share by a
            cosine over all steps (CDA's curriculum).
        shift: whether views are shifted circularly, as SRe2L and FADRM do.
        batch: what a BN group is: one image of each class (``mixed``), or all images of some
            classes, as many as make a hundred images (``class``).
    """

    bn_weight: float = 0.01
    first_weight: float = 10.0
    crop: tuple[float, float] = (0.08, 1.0)
    easy_first: bool = False
    shift: bool = True
    batch: Literal["mixed", "class"] = "mixed"

    def at_work(self, scene: Scene) -> Matcher:
        """Return the objective at work on a block of classes."""
        return Matcher(self, scene)

    def smallest_crop(self, step: int, steps: int) -> float:
        """Return the least share of the area that a view of a step shows."""
        low = self.crop[0]
        if not self.easy_first:
            return low
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def __call__(
        self, probe: Probe, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Eq. 1 and its alignment term, both ``(g,)``, for ``(g, n, 3, h, w)`` images."""
        logits, gap = probe(images, self.first_weight)
        return decoupled_objective(logits, labels, gap, self.bn_weight), gap
