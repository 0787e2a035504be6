"""WMDD: features at the Wasserstein barycentre of a class, and its own BatchNorm statistics.

Source: "Dataset Distillation via the Wasserstein Metric" (ICCV 2025) and its code. For each class,
the n images that are made stand for the m real ones: with features f_1 … f_m of the frozen teacher,

    B = argmin_{b_1 … b_n} W₂² ( 1/n Σ_j δ(b_j),  1/m Σ_i δ(f_i) )

is their barycentre with a free support, by alternating the optimal transport T with b_j ← the mean
of what is sent to it (Cuturi and Doucet, ICML 2014, algorithm 2; POT computes it). Image j of the
class is then drawn to b_j, in batches of as many whole classes as make a hundred images:

    L = ρ·CE + ‖F − B‖_F + β · Σ_l w_l · mean_c ( ‖μ_{l,c} − μ̂_{l,c}‖₂ + ‖v_{l,c} − v̂_{l,c}‖₂ )

F and B hold the features and their goals of all images of the batch; μ_{l,c} and v_{l,c} are mean
and variance of what enters BatchNorm layer l over the images of class c alone, hats: over its real
ones. w = 1 for every layer. β is 0.01; the authors use 10 on ImageNette and 500 on Tiny-ImageNet.

Ours: the support begins with n random real features, weights stay equal (the code's default too),
real features and statistics are those of the images as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reta.errors import UsageError
from reta.runtime import random_generator
from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.layers import LayerProbe, patch_side, real_statistics
from reta.synthesis.matching import Matcher, Matching, Scene, Turn
from reta.synthesis.pool import Pool


def barycentre(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the barycentre ``(count, d)`` of features ``(m, d)`` as equally weighted points.

    Args:
        features: of the real images of a class.
        count: points of the support.
        rng: chooses the real features it begins with.
    """
    try:
        transport: Any = importlib.import_module("ot")
    except ImportError as error:
        raise UsageError("method wmdd needs POT: pip install 'reta[wmdd]'") from error
    order = rng.permutation(len(features))
    begin = features[order[np.arange(count) % len(order)]]
    weights = transport.unif(len(features))
    result: np.ndarray = transport.lp.free_support_barycenter([features], [weights], begin)
    return result


@dataclass(frozen=True)
class BarycentreMatching(Matching):
    """WMDD's objective.

    Attributes:
        class_weight: ρ, weight of the cross-entropy.
    """

    first_weight: float = 1.0
    batch: Literal["mixed", "class"] = "class"
    class_weight: float = 1.0

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that the statistics of the classes take, see `Looking`."""
        return Forwards("measured", extent.classes * extent.per_class)

    def at_work(self, scene: Scene) -> Matcher:
        """Return the objective at work on a block of classes."""
        return _Barycentre(self, scene)


class _Barycentre(Matcher):
    objective: BarycentreMatching

    def __init__(self, objective: BarycentreMatching, scene: Scene) -> None:
        super().__init__(objective, scene)
        self._statistics: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def goals(self, label: int) -> torch.Tensor:
        """Return the features ``(ipc, d)`` of the first teacher that a class is to have."""
        pool, ipc, seed = self.scene.pool, self.scene.ipc, self.scene.seed
        return pool.once(
            ("barycentre", label, ipc, seed), lambda: _goals(pool, label, ipc, seed)
        ).to(self.scene.device)

    def statistics(self, label: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return mean and variance of each BatchNorm layer over the real images of a class."""
        if label not in self._statistics:
            pool = self.scene.pool
            probe = LayerProbe(self.scene.probes[0].source, patch_side(pool.image_size))
            others = {i for i, x in enumerate(probe.layers) if isinstance(x, nn.Conv2d)}
            found = real_statistics(probe, pool, pool.members(label), others)
            self._statistics[label] = [(mean, variance) for mean, variance in found.values()]
        return self._statistics[label]

    def __call__(self, images: torch.Tensor, turn: Turn) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return what groups of augmented images cost, see `Matcher`."""
        groups, labels = len(images), turn.labels.unique_consecutive().tolist()
        each = images.shape[1] // len(labels)
        by_class = images.flatten(0, 1).unflatten(0, (groups * len(labels), each))
        seen = self.scene.probes[0].read(by_class)
        wanted = torch.stack([self.goals(label)[:each] for label in labels]).to(seen.features)
        features = seen.features.view(groups, -1)
        distance = torch.linalg.vector_norm(features - wanted.flatten(), dim=1)
        gap = images.new_zeros(groups)
        for layer, pair in enumerate(zip(seen.means, seen.variances, strict=True)):
            weight = self.objective.first_weight if layer == 0 else 1.0
            for part, value in enumerate(pair):
                real = torch.stack([self.statistics(label)[layer][part] for label in labels])
                away = torch.linalg.vector_norm(value - real.repeat(groups, 1), dim=1)
                gap = gap + weight * away.view(groups, -1).mean(dim=1)
        targets = turn.labels.repeat(groups)
        loss = F.cross_entropy(seen.logits.flatten(0, 1), targets, reduction="none")
        loss = self.objective.class_weight * loss.view(groups, -1).mean(dim=1)
        return loss + distance + self.objective.bn_weight * gap, gap, None

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing is remembered: goals and statistics follow from the real images."""


def _goals(pool: Pool, label: int, ipc: int, seed: int) -> torch.Tensor:
    features = pool.features[pool.members(label)].double().numpy()
    rng = random_generator(seed, "barycentre", label)
    return torch.from_numpy(barycentre(features, ipc, rng)).float()
