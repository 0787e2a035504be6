"""Coresets: orders in which the real images of a class stand for the whole class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

from reta.runtime import random_generator
from reta.synthesis.pool import Pool


def random_order(pool: Pool, label: int, seed: int) -> torch.Tensor:
    """Return the images of a class in random order."""
    members = pool.members(label)
    return members[random_generator(seed, "start", label).permutation(len(members))]


def medium_order(pool: Pool, label: int, seed: int = 0) -> torch.Tensor:
    """Return the images of a class, nearest the median of the true-class probability first.

    FADRM starts from such images of medium difficulty.
    """
    members = pool.members(label)
    confidence = pool.confidence[members]
    return members[(confidence - confidence.median()).abs().argsort(stable=True)]


def typical_order(pool: Pool, label: int, seed: int) -> torch.Tensor:
    """Return the images of a class, most confidently recognised first."""
    members = pool.members(label)
    return members[pool.confidence[members].argsort(descending=True, stable=True)]


def herding_order(pool: Pool, label: int, seed: int) -> torch.Tensor:
    """Return the images of a class such that each beginning has the mean feature of the class.

    The next image is the one whose feature brings the mean of those chosen nearest to the mean of
    all. Features have unit length. Source: iCaRL (Rebuffi et al., CVPR 2017), algorithm 4.
    """
    members = pool.members(label)
    features = F.normalize(pool.features[members].double(), dim=1)
    return members[pool.once(("herding", label), lambda: _herd(features))]


def _herd(features: torch.Tensor) -> torch.Tensor:
    """Return an order ``(n,)`` of the features ``(n, d)``."""
    wanted = features.mean(0)
    chosen, total = [], torch.zeros_like(wanted)
    free = torch.ones(len(features), dtype=torch.bool)
    for count in range(1, len(features) + 1):
        distance = (wanted - (total + features) / count).square().sum(1)
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen, dtype=torch.int64)


def center_order(pool: Pool, label: int, seed: int) -> torch.Tensor:
    """Return the images of a class, each as far as can be from those before it.

    Greedy k-centre on features of unit length (Sener and Savarese, ICLR 2018). The first is the
    image nearest the mean of the class, where the paper starts from any.
    """
    members = pool.members(label)
    features = F.normalize(pool.features[members].double(), dim=1)
    return members[pool.once(("center", label), lambda: _spread(features))]


def _spread(features: torch.Tensor) -> torch.Tensor:
    """Return an order ``(n,)`` of the features ``(n, d)``."""
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < len(features):
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -1.0  # never again, not even among identical images
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen, dtype=torch.int64)


GREEDY = 100  # images chosen one after the other, each a pass over all distances of the class


def medoid_order(pool: Pool, label: int, seed: int) -> torch.Tensor:
    """Return the images of a class such that each beginning lies near to all of it.

    Greedy k-medoids (facility location) on features of unit length: the next image is the one that
    most lowers the mean distance of the class to its nearest chosen image. Each beginning lowers it
    by 1 − 1/e of what the best choice of as many would, or more (Nemhauser et al., 1978). After the
    first hundred the rest follow by what each would lower then.
    """
    members = pool.members(label)
    features = F.normalize(pool.features[members].double(), dim=1)
    return members[pool.once(("medoid", label), lambda: _cover(features))]


def _cover(features: torch.Tensor) -> torch.Tensor:
    """Return an order ``(n,)`` of the features ``(n, d)``."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.new_full((len(features),), 2.0)  # the diameter of the sphere
    chosen: list[int] = []
    while True:
        cost = torch.minimum(distances, nearest).sum(dim=1)
        cost[chosen] = torch.inf
        if len(chosen) == min(GREEDY, len(features)):
            rest = cost.argsort(stable=True)[: len(features) - len(chosen)]
            return torch.cat([torch.tensor(chosen, dtype=torch.int64), rest])
        chosen.append(int(cost.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])


Order = Literal["medium", "random", "typical", "herding", "k-center", "k-medoids"]
ORDERS: dict[Order, Callable[[Pool, int, int], torch.Tensor]] = {
    "medium": medium_order,
    "random": random_order,
    "typical": typical_order,
    "herding": herding_order,
    "k-center": center_order,
    "k-medoids": medoid_order,
}
