"""Eq. 1: what synthetic images are optimised against, a teacher's classes and its statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from reta.models import Classifier
from reta.synthesis.frozen import Reading, frozen
from reta.synthesis.statistics import group_statistics


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


def batchnorm_gap(
    means: Sequence[torch.Tensor],
    variances: Sequence[torch.Tensor],
    layers: Sequence[nn.BatchNorm2d],
    first_weight: float = 10.0,
) -> torch.Tensor:
    """Return Σ_l w_l (‖μ_l − μ̂_l‖₂ + ‖v_l − v̂_l‖₂), the alignment term of Eq. 1 (not squared).

    Args:
        means: for each layer ``(g, channels)`` means of its input over each group.
        variances: likewise, biased.
        layers: the layers, whose running statistics are the targets.
        first_weight: w of the first layer; 1 for all others.

    Returns:
        ``(g,)``.
    """
    gap = means[0].new_zeros(len(means[0]))
    for index, (mean, variance, layer) in enumerate(zip(means, variances, layers, strict=True)):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        distance = torch.linalg.vector_norm(mean - layer.running_mean, dim=1)
        distance = distance + torch.linalg.vector_norm(variance - layer.running_var, dim=1)
        gap = gap + (first_weight if index == 0 else 1.0) * distance
    return gap


class Probe(Protocol):
    """Reads the statistics of what enters each BatchNorm layer of a teacher, per group.

    Groups of images may share a forward pass; because the teacher is in eval mode they do not
    touch each other, and statistics taken per group equal those of separate passes.

    Attributes:
        teacher: to ask for features, without statistics.
    """

    teacher: Classifier

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images ``(g, n, 3, h, w)``.

        Returns:
            logits ``(g, n, classes)`` and the BN gap ``(g,)``, zero for a teacher without BN.
        """
        ...


def probe(teacher: Classifier) -> Probe:
    """Return the fastest probe there is for a teacher; all give the same numbers."""
    rewritten = frozen(teacher)
    return BatchNormProbe(teacher) if rewritten is None else FrozenProbe(teacher, *rewritten)


class FrozenProbe:
    """The fast probe: the teacher rewritten, see `reta.synthesis.frozen`."""

    def __init__(self, source: Classifier, teacher: Classifier, reading: Reading) -> None:
        self.teacher = teacher
        self.layers = source.batch_norms()
        self._reading = reading

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images, see `Probe`."""
        self._reading.groups, self._reading.statistics = len(images), {}
        try:
            logits = group_logits(self.teacher, images)
            statistics = self._reading.statistics
        finally:
            self._reading.groups, self._reading.statistics = 0, {}
        if not self.layers:
            return logits, logits.new_zeros(len(images))
        means, variances = zip(*[statistics[layer] for layer in self.layers], strict=True)
        return logits, batchnorm_gap(means, variances, self.layers, first_weight)


def group_logits(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return the logits ``(g, n, classes)`` of groups of images ``(g, n, 3, h, w)``.

    The head takes each group by itself: a matrix product rounds differently for another number of
    rows, the rest of a network mostly does not. So the same bytes come out of (almost) any packing.
    """
    features = teacher.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    return torch.stack([teacher.head(group) for group in features])


class BatchNormProbe:
    """The plain probe, for any teacher: hooks read what enters each layer."""

    def __init__(self, teacher: Classifier) -> None:
        self.teacher = teacher
        self.layers = teacher.batch_norms()
        self._groups = 1
        # By layer, because a network may use its layers in another order than it registers them.
        self._means: dict[nn.Module, torch.Tensor] = {}
        self._variances: dict[nn.Module, torch.Tensor] = {}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._means, self._variances = {}, {}
        hooks = [layer.register_forward_pre_hook(self._read) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _read(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (activation,) = inputs
        mean, variance = group_statistics(activation, self._groups)
        self._means[layer], self._variances[layer] = mean, variance

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images, see `Probe`."""
        self._groups = len(images)
        with self._reading():
            logits = group_logits(self.teacher, images)
        if not self.layers:
            return logits, logits.new_zeros(len(images))
        means = [self._means[layer] for layer in self.layers]
        variances = [self._variances[layer] for layer in self.layers]
        return logits, batchnorm_gap(means, variances, self.layers, first_weight)


@dataclass(frozen=True)
class Matching:
    """The decoupled objective with FADRM's settings.

    Attributes:
        bn_weight: β, weight of the alignment term.
        first_weight: extra weight of the first BatchNorm layer.
        crop: range of the share of the area that the random resized crop keeps.
    """

    bn_weight: float = 0.01
    first_weight: float = 10.0
    crop: tuple[float, float] = (0.08, 1.0)

    def __call__(
        self, probe: Probe, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Eq. 1 and its alignment term, both ``(g,)``, for ``(g, n, 3, h, w)`` images."""
        logits, gap = probe(images, self.first_weight)
        return decoupled_objective(logits, labels, gap, self.bn_weight), gap
