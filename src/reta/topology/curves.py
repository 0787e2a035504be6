"""Measures of contraction: how much of a class's spread and topology synthesis has lost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .graph import diameters, pair_distances
from .persistence import persistence_diagrams


def betti_curve(diagram: Tensor, lengths: Tensor) -> Tensor:
    """Count the bars alive, birth <= length < death, at each length.

    Args:
        diagram: `(m, 2)` births and deaths, in distance units; deaths may be infinite.
        lengths: `(l,)`, in distance units.

    Returns:
        `(l,)` int64.
    """
    births, deaths = diagram.detach().double().sort(dim=0).values.T.contiguous()
    lengths = torch.as_tensor(lengths).to(births)
    born = torch.searchsorted(births, lengths, right=True)
    return born - torch.searchsorted(deaths, lengths, right=True)


def contraction_gap(
    real: Tensor,
    synthetic: Tensor,
    k: int = 15,
    max_length: float | None = None,
    loop_weight: float = 1.0,
) -> float:
    """Eq. 9: contraction gap, κ = ∫ (B₀ʳᵉᵃˡ − B₀ˢʸⁿ)₊ dε + γ ∫ (B₁ʳᵉᵃˡ − B₁ˢʸⁿ)₊ dε, exactly.

    The integrals run from 0 to the longest length. Each set has a graph of its own; essential
    features die at the longest length.

    Args:
        real: `(n, d)`.
        synthetic: `(m, d)`; compare as many points as there are real ones, for B₀(0) is their
            number.
        k: neighbours of a point, see `mutual_knn_graph`.
        max_length: longest length, in distance units; None is the diameter of `real`.
        loop_weight: γ.

    Returns:
        The gap, at least 0, in distance units.

    Raises:
        ValueError: a point is not finite, or an argument is out of range.
    """
    if max_length is None:
        max_length = diameters(real[None]).item()
    real_diagrams = persistence_diagrams(real.detach(), k, max_length)
    synthetic_diagrams = persistence_diagrams(synthetic.detach(), k, max_length)
    components, loops = map(_excess, real_diagrams, synthetic_diagrams)
    return components + loop_weight * loops


def _excess(diagram: Tensor, other: Tensor) -> float:
    """Integrate the positive part of the difference of two Betti curves."""
    knots = torch.cat((diagram, other)).flatten().sort().values  # both are constant in between
    excess = betti_curve(diagram, knots) - betti_curve(other, knots)
    return float((excess[:-1].clamp_min(0) * knots.diff()).sum())


def contraction_ratio(before: Tensor, after: Tensor) -> float:
    """Eq. 7–8: contraction ratio, mean ‖y′ᵢ − y′ⱼ‖ / mean ‖yᵢ − yⱼ‖ over pairs of a class.

    A connection x′ = α x + (1 − α) o maps the features y to y′. Pairwise distances shrink towards
    α times their size where the anchors o lie close together: the pull-to-anchor effect.

    Args:
        before: `(n, d)` features y.
        after: `(n, d)` features y′.

    Returns:
        Below 1 if the class contracted. 1 if there are fewer than two points or all distances
        are 0 before and after; infinity if they are 0 only before.

    Raises:
        ValueError: a point is not finite.
    """
    if min(len(before), len(after)) < 2:
        return 1.0
    spread_before, spread_after = (
        pair_distances(points[None]).mean().item() for points in (before, after)
    )
    if spread_before == 0:
        return 1.0 if spread_after == 0 else math.inf
    return spread_after / spread_before
