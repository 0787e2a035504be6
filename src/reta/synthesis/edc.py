"""EDC: statistics of the whole data and of the classes in a batch, from real images on.

Source: "Elucidating the Design Space of Dataset Condensation" (NeurIPS 2024) and its code. It is
G-VBSM (`reta.synthesis.gvbsm`) with three changes. The images start from real ones (RDED's). No
convolution is left out and the eigenvalue term is gone. And each statistic is drawn to two targets,

    Σ_s ( (1 − η)·‖ŝ_l − s̃_l‖₂ + η·‖s̄_l − s̃_l‖₂ ),  η = 0.5

where s̄ is the mean, over the images of the batch, of the statistic of their class in the real
images ("category-aware matching"), also for BatchNorm.

The "flatness" term of the paper (a KL between the logits of the images and of their running mean)
is off in the CIFAR-100 script and computed as the constant 0 in the ImageNet code: left out here.
Students: MSE between logits + 0.025·CE and a running mean of the weights, decay 0.99, the learning
rate ending at half: `--protocol own`; by default all methods share reta's protocol.

Ours, besides what `reta.synthesis.gvbsm` says: the variance of a class is that of all its positions
(the code averages the variances within each image); β = 0.01 at all sizes (0.1 in the ImageNet-1K
script: a setting); the committee is the run's (the authors distil with 5 to 8 networks).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.gvbsm import GeneralizedMatching, Remembering, Targets
from reta.synthesis.layers import real_statistics
from reta.synthesis.matching import Matcher, Scene, Turn


@dataclass(frozen=True)
class ClasswiseMatching(GeneralizedMatching):
    """Statistics are drawn to those of all real images and to those of their classes.

    Attributes:
        class_share: η, weight of the classes' statistics; the rest is that of the whole data's.
    """

    crop: tuple[float, float] = (0.5, 1.0)
    shift: bool = False
    drop: float = 0.0
    density: float = 0.0
    class_share: float = 0.5

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that the targets of the data and of the classes take."""
        own = extent.classes * min(self.real_images, extent.per_class)
        return Forwards("measured", super().looks(extent).images + extent.teachers * own)

    def at_work(self, scene: Scene) -> Matcher:
        """Return the objective at work on a block of classes."""
        return _Classwise(self, scene)


class _Classwise(Remembering):
    objective: ClasswiseMatching

    def __init__(self, objective: ClasswiseMatching, scene: Scene) -> None:
        super().__init__(objective, scene)
        self._by_class: dict[tuple[int, int], Targets] = {}
        self._of_batch: dict[tuple[int, ...], torch.Tensor] = {}

    def class_targets(self, teacher: int, label: int) -> Targets:
        """Return the statistics of the real images of a class; measured once."""
        key = (teacher, label)
        if key not in self._by_class:
            members = self.scene.pool.members(label)[: self.objective.real_images]
            self._by_class[key] = real_statistics(self._probes[teacher], self.scene.pool, members)
        return self._by_class[key]

    def distance(
        self, teacher: int, layer: int, part: int, now: torch.Tensor, turn: Turn
    ) -> torch.Tensor:
        """Return how far a statistic ``(g, d)`` is from its two targets, ``(g,)``."""
        share = self.objective.class_share
        whole = super().distance(teacher, layer, part, now, turn)
        key = (teacher, layer, part, *turn.groups)
        if key not in self._of_batch:  # the same images at every step
            labels = turn.labels.tolist()
            each = [self.class_targets(teacher, label)[layer][part] for label in labels]
            self._of_batch[key] = torch.stack(each).mean(dim=0)
        own: torch.Tensor = torch.linalg.vector_norm(now - self._of_batch[key], dim=1)
        return (1 - share) * whole + share * own
