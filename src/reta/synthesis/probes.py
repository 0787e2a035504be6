"""Probes: ask a teacher for its logits and the statistics of what enters its BatchNorm layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from reta.errors import UsageError
from reta.models import Classifier
from reta.runtime import autocast
from reta.synthesis.frozen import Reading, frozen
from reta.synthesis.statistics import group_statistics


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


@dataclass(frozen=True)
class Seen:
    """What a teacher says of groups of images.

    Attributes:
        logits: ``(g, n, classes)``.
        features: ``(g, n, d)``, penultimate.
        means: for each BatchNorm layer ``(g, channels)`` means of its input over each group.
        variances: likewise, biased.
    """

    logits: torch.Tensor
    features: torch.Tensor
    means: Sequence[torch.Tensor]
    variances: Sequence[torch.Tensor]


class Probe(Protocol):
    """Reads the statistics of what enters each BatchNorm layer of a teacher, per group.

    Groups of images may share a forward pass; because the teacher is in eval mode they do not
    touch each other, and statistics taken per group equal those of separate passes.

    Attributes:
        teacher: to ask for features, without statistics.
        source: the teacher as it came.
    """

    teacher: Classifier
    source: Classifier

    @property
    def layers(self) -> Sequence[nn.BatchNorm2d]:
        """The BatchNorm layers, in registration order."""
        ...

    def read(self, images: torch.Tensor) -> Seen:
        """Run the teacher on groups of images ``(g, n, 3, h, w)``."""
        ...

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images ``(g, n, 3, h, w)``.

        Returns:
            logits ``(g, n, classes)`` and the BN gap ``(g,)``, zero for a teacher without BN.
        """
        ...


def probe(teacher: Classifier, short: torch.dtype | None = None, compiled: bool = False) -> Probe:
    """Return the fastest probe there is for a teacher; all give the same numbers.

    Args:
        teacher: frozen.
        short: the number format of its convolutions, float32 by default. A teacher that cannot be
            rewritten stays in float32.
        compiled: have torch compile it instead, in float32.
    """
    if compiled:
        return CompiledProbe(teacher)
    rewritten = frozen(teacher, short)
    return BatchNormProbe(teacher) if rewritten is None else FrozenProbe(teacher, *rewritten, short)


_LOSS_SCALE = 2.0**12  # of gradients in float16, whose smallest normal number is 2^-14


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def _scaled_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    result: torch.Tensor = _ScaledGradient.apply(x, factor)
    return result


class FrozenProbe:
    """The fast probe: the teacher rewritten, see `reta.synthesis.frozen`.

    In float16 all gradients inside are larger by a constant, which is taken back where they leave;
    so nobody outside needs to know of it.
    """

    def __init__(
        self,
        source: Classifier,
        teacher: Classifier,
        reading: Reading,
        short: torch.dtype | None = None,
    ) -> None:
        self.teacher, self.source = teacher, source
        self.layers = source.batch_norms()
        self._reading, self._short = reading, short

    def read(self, images: torch.Tensor) -> Seen:
        """Run the teacher on groups of images, see `Probe`."""
        scale = 1.0 if self._short is None else _LOSS_SCALE
        if self._short is not None:
            images = _scaled_gradient(images, 1 / scale)
        self._reading.groups, self._reading.statistics = len(images), {}
        try:
            with autocast(images.device, self._short):
                features = group_features(self.teacher, images)
            statistics = [self._reading.statistics[layer] for layer in self.layers]
        finally:
            self._reading.groups, self._reading.statistics = 0, {}
        means, variances = (
            [mean for mean, _ in statistics],
            [variance for _, variance in statistics],
        )
        if self._short is not None:
            features = _scaled_gradient(features.to(images.dtype), scale)
            means = [_scaled_gradient(mean, scale) for mean in means]
            variances = [_scaled_gradient(variance, scale) for variance in variances]
        return Seen(group_logits(self.teacher, features), features, means, variances)

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images, see `Probe`."""
        return _gap(self.read(images), self.layers, first_weight)


def _gap(
    seen: Seen, layers: Sequence[nn.BatchNorm2d], first_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if not layers:
        return seen.logits, seen.logits.new_zeros(len(seen.logits))
    return seen.logits, batchnorm_gap(seen.means, seen.variances, layers, first_weight)


def group_outputs(teacher: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits ``(g, n, classes)`` and features of groups of images ``(g, n, 3, h, w)``."""
    features = group_features(teacher, images)
    return group_logits(teacher, features), features


def group_features(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return the features ``(g, n, d)`` of groups of images ``(g, n, 3, h, w)``."""
    features = teacher.features(images.flatten(0, 1))
    grouped: torch.Tensor = features.unflatten(0, images.shape[:2])
    return grouped


def group_logits(teacher: Classifier, features: torch.Tensor) -> torch.Tensor:
    """Return the logits ``(g, n, classes)`` of groups of features ``(g, n, d)``.

    The head takes each group by itself: a matrix product rounds differently for another number of
    rows, the rest of a network mostly does not. So the same bytes come out of (almost) any packing.
    """
    return torch.stack([teacher.head(group) for group in features])


class BatchNormProbe:
    """The plain probe, for any teacher: hooks read what enters each layer."""

    def __init__(self, teacher: Classifier) -> None:
        self.teacher = self.source = teacher
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

    def read(self, images: torch.Tensor) -> Seen:
        """Run the teacher on groups of images, see `Probe`."""
        self._groups = len(images)
        with self._reading():
            logits, features = group_outputs(self.teacher, images)
        means = [self._means[layer] for layer in self.layers]
        variances = [self._variances[layer] for layer in self.layers]
        return Seen(logits, features, means, variances)

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images, see `Probe`."""
        return _gap(self.read(images), self.layers, first_weight)


class CompiledProbe:
    """The plain probe, compiled by torch once for each number of groups and size.

    On a GPU what was compiled is replayed as a CUDA graph: one launch instead of hundreds.
    """

    def __init__(self, teacher: Classifier) -> None:
        self.teacher = self.source = teacher
        self.layers = teacher.batch_norms()
        self._watched = copy.deepcopy(teacher)  # its hooks stay, so they are compiled with it
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._groups = 1
        for index, layer in enumerate(self._watched.batch_norms()):
            layer.register_forward_pre_hook(partial(self._keep, index))
        mode = "reduce-overhead" if teacher.mean.is_cuda else "default"  # the former: CUDA graphs
        self._compiled = torch.compile(self._pass, mode=mode, dynamic=False)

    def _keep(self, index: int, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._kept[index] = group_statistics(inputs[0], self._groups)

    def _pass(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, features = group_outputs(self._watched, images)
        kept = [self._kept[index] for index in range(len(self.layers))]
        return logits, features, *(mean for mean, _ in kept), *(variance for _, variance in kept)

    def read(self, images: torch.Tensor) -> Seen:
        """Run the teacher on groups of images, see `Probe`.

        Raises:
            UsageError: if torch finds no compiler for this device.
        """
        from torch._dynamo.exc import BackendCompilerFailed  # two seconds, for this alone

        self._groups = len(images)
        try:
            with warnings.catch_warnings():  # the compiler looks at the gradient of what has none
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
                logits, features, *statistics = self._compiled(images)
        except BackendCompilerFailed as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"--compiled: torch cannot compile {self.source.name} here: {reason}\n"
                "install what it asks for (a C++ compiler; on a GPU triton), or leave it out"
            ) from error
        count = len(self.layers)
        return Seen(logits, features, statistics[:count], statistics[count:])

    def __call__(
        self, images: torch.Tensor, first_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the teacher on groups of images, see `Probe`."""
        return _gap(self.read(images), self.layers, first_weight)
