"""G-VBSM: many backbones, and statistics of convolutions beside those of BatchNorm.

Source: "Generalized Large-Scale Data Condensation via Various Backbone and Statistical Matching"
(CVPR 2024) and its code. The teachers take turns. A batch holds all images of some classes, and

    L = CE + β · Σ_l w_l · Σ_s ‖ŝ_l − s̃_l‖₂ + ν · Σ_c KL( softmax(λ_c / τ) ‖ softmax(λ_c) )

- l runs over the BatchNorm and the convolution layers in the order of the network; w = 10 for the
  first of them (a convolution, mostly), 1 elsewhere. s runs over mean and variance of each channel
  of what enters the layer; for a convolution also of each patch of its plane (4×4 pixels of the
  map; 16×16 for large images). A BatchNorm's target is its running statistics; a convolution's is
  measured on real images.
- s̃ = α·m + (1 − α)·s, where m is the running mean of s over the steps of this teacher (α = 0.8) and
  gets no gradient, while the gradient at s is that at s̃ ("score distillation").
- Each convolution is left out of a step with probability 0.4.
- λ_c are the eigenvalues of the Gram matrix of the images of class c, normalised pixels, at most
  32×32; the first side of the KL is constant. It is zero for one image per class, and nearly so
  for more: at usual sizes the largest eigenvalue takes it all.

Ours: m begins with the first s (the code: with 0, so that the first targets are missed); each batch
has its own m (the code lets the next batch inherit it); convolutions are measured on 10,000 random
training images, as they are; crops are those of ImageNet at all sizes (the CIFAR code moves by
4 px); labels and students are reta's, where the authors use MSE + 0.1·CE (`--protocol own`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from reta.runtime import random_generator
from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.layers import LayerProbe, Statistics, patch_side, real_statistics
from reta.synthesis.matching import Matcher, Matching, Scene, Turn

Targets = dict[int, Statistics]


@dataclass(frozen=True)
class GeneralizedMatching(Matching):
    """Cross-entropy and statistics of all layers, remembered over the steps.

    Attributes:
        momentum: α, how much of what is compared is the running mean.
        drop: probability with which a convolution is left out of a step.
        density: ν, weight of the eigenvalue term.
        density_temperature: τ of the eigenvalue term.
        real_images: most real images that convolutions are measured on.
    """

    batch: Literal["mixed", "class"] = "class"
    momentum: float = 0.8
    drop: float = 0.4
    density: float = 1.0
    density_temperature: float = 4.0
    real_images: int = 10_000

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that the targets of the convolutions take, see `Looking`."""
        return Forwards("measured", extent.teachers * min(self.real_images, extent.real))

    def at_work(self, scene: Scene) -> Matcher:
        """Return the objective at work on a block of classes."""
        return Remembering(self, scene)


class Remembering(Matcher):
    """A matcher that remembers the statistics of each batch, see `GeneralizedMatching`."""

    objective: GeneralizedMatching

    def __init__(self, objective: GeneralizedMatching, scene: Scene) -> None:
        super().__init__(objective, scene)
        side = patch_side(scene.pool.image_size)
        self._probes = [LayerProbe(probe.source, side) for probe in scene.probes]
        self._targets: dict[int, Targets] = {}
        self._memory: dict[str, torch.Tensor] = {}

    def targets(self, teacher: int) -> Targets:
        """Return what the statistics of a teacher's layers are to become; measured once."""
        if teacher not in self._targets:
            probe, pool = self._probes[teacher], self.scene.pool
            norms = {i: x for i, x in enumerate(probe.layers) if isinstance(x, nn.BatchNorm2d)}
            rng = random_generator(self.scene.seed, "statistics")
            chosen = rng.permutation(len(pool.labels))[: self.objective.real_images]
            found = real_statistics(probe, pool, torch.from_numpy(chosen), norms)
            for position, layer in norms.items():
                assert layer.running_mean is not None
                assert layer.running_var is not None
                found[position] = [layer.running_mean, layer.running_var]
            self._targets[teacher] = found
        return self._targets[teacher]

    def dropped(self, teacher: int, step: int) -> set[int]:
        """Return the convolutions that are left out of a step."""
        rng = random_generator(self.scene.seed, "drop", self.scene.labels[0], step)
        layers = self._probes[teacher].layers
        lost = rng.random(len(layers)) < self.objective.drop
        return {i for i, x in enumerate(layers) if lost[i] and isinstance(x, nn.Conv2d)}

    def distance(
        self, teacher: int, layer: int, part: int, now: torch.Tensor, turn: Turn
    ) -> torch.Tensor:
        """Return how far a statistic ``(g, d)`` is from its target, ``(g,)``."""
        gap = now - self.targets(teacher)[layer][part]
        distance: torch.Tensor = torch.linalg.vector_norm(gap, dim=1)
        return distance

    def __call__(self, images: torch.Tensor, turn: Turn) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return what groups of augmented images cost, see `Matcher`."""
        (teacher,) = self.asked(turn.step)
        skip = self.dropped(teacher, turn.step)
        logits, found = self._probes[teacher](images, skip)
        gap, news = images.new_zeros(len(images)), {}
        for layer, statistics in found.items():
            weight = self.objective.first_weight if layer == 0 else 1.0
            for part, now in enumerate(statistics):
                key = f"{teacher}.{layer}.{part}"
                mixed = self._blended(key, now, turn.groups)
                news[key] = mixed.detach()
                gap = gap + weight * self.distance(teacher, layer, part, mixed, turn)
        labels = turn.labels.repeat(len(images))
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
        loss = loss.view(len(images), -1).mean(dim=1) + self.objective.bn_weight * gap
        if self.objective.density:
            loss = loss + self.objective.density * self._density(teacher, images, turn)
        return loss, gap, news

    def _blended(self, key: str, now: torch.Tensor, groups: range) -> torch.Tensor:
        """Return α·m + (1 − α)·s with the gradient of s; s itself if nothing is remembered yet."""
        if key not in self._memory:
            return now
        old, alpha = self._memory[key][groups.start : groups.stop], self.objective.momentum
        return alpha * old + (1 - alpha) * now.detach() + now - now.detach()

    def _density(self, teacher: int, images: torch.Tensor, turn: Turn) -> torch.Tensor:
        """Return the eigenvalue term of each group."""
        classes = len(turn.labels.unique())
        if classes == len(turn.labels):
            return images.new_zeros(len(images))
        model = self._probes[teacher].teacher
        pixels = ((images - model.mean) / model.std).flatten(0, 1)
        if pixels.shape[-1] > 32:
            pixels = F.adaptive_avg_pool2d(pixels, 32)
        rows = pixels.flatten(1).unflatten(0, (len(images), classes, -1))  # (g, classes, n, d)
        eigenvalues = torch.linalg.eigvalsh(rows @ rows.transpose(2, 3))
        wanted = (eigenvalues.detach() / self.objective.density_temperature).log_softmax(dim=-1)
        divergence = F.kl_div(
            eigenvalues.log_softmax(dim=-1), wanted, reduction="none", log_target=True
        )
        return divergence.sum(dim=(1, 2))

    def remember(self, news: Sequence[Any]) -> None:
        """Take over the running means of a step, pass after pass: they hold all groups."""
        for key in news[0]:
            self._memory[key] = torch.cat([values[key] for values in news])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the running means."""
        return dict(self._memory)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go back to running means that were kept."""
        self._memory = dict(tensors)
