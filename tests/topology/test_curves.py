import math
from itertools import combinations, pairwise

import pytest
import torch
from topology_oracles import circle, cloud

from reta.topology import (
    betti_curve,
    contraction_gap,
    contraction_ratio,
    diameters,
    persistence_diagrams,
)


def alive(diagram, length):
    return sum(birth <= length < death for birth, death in diagram)


def excess(real, synthetic):
    """The integral of the positive part, one interval between births and deaths at a time."""
    knots = sorted({end for bar in (*real, *synthetic) for end in bar})
    return sum(
        (high - low) * max(alive(real, low) - alive(synthetic, low), 0)
        for low, high in pairwise(knots)
    )


def test_betti_curve_counts_bars():
    """Breaks on an open birth, a closed death, or a lost infinite bar."""
    bars = [(0.0, 1.0), (0.0, math.inf), (0.5, 2.0), (1.0, 1.5), (0.5, 1.0)]
    lengths = [2.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, -1.0, 5.0]
    counts = betti_curve(torch.tensor(bars), torch.tensor(lengths))
    assert counts.tolist() == [alive(bars, length) for length in lengths]


def test_betti_curve_at_integer_lengths():
    """Breaks if births are rounded to the type of the lengths."""
    assert betti_curve(torch.tensor([[0.5, 1.5]]), torch.arange(3)).tolist() == [0, 1, 0]


def test_betti_curve_of_nothing_is_zero():
    """Breaks if an empty diagram is not foreseen."""
    assert betti_curve(torch.empty(0, 2), torch.linspace(0, 1, 5)).tolist() == [0] * 5


@pytest.mark.parametrize("k", [3, 15])
@pytest.mark.parametrize("max_length", [None, 1.2])
@pytest.mark.parametrize("loop_weight", [0.0, 1.0, 2.5])
def test_gap_is_the_exact_integral(k, max_length, loop_weight):
    """Breaks on a sampled integral, a lost weight, or a cut that is not that of the real set."""
    real, synthetic = cloud(25, dim=2), 0.6 * cloud(25, dim=2, seed=1)
    cut = max_length or diameters(real[None]).item()
    both = zip(
        persistence_diagrams(real, k, cut), persistence_diagrams(synthetic, k, cut), strict=True
    )
    components, loops = (excess(r.tolist(), s.tolist()) for r, s in both)
    assert components > 0
    assert loops > 0
    gap = contraction_gap(real, synthetic, k, max_length, loop_weight)
    assert isinstance(gap, float)
    assert gap == pytest.approx(components + loop_weight * loops, rel=1e-12)


def test_gap_of_a_circle_and_its_contraction():
    """Breaks if the integral misses what can be worked out on paper."""
    side = 2 * math.sin(math.pi / 21)  # 20 merges there; the loop lives from there to √3
    gap = contraction_gap(circle(21), circle(21, radius=0.1), k=20)
    assert gap == pytest.approx(20 * 0.9 * side + math.sqrt(3) - side, rel=1e-12)


def test_gap_only_counts_what_synthesis_lost():
    """Breaks if the difference is taken the other way round, or in absolute value."""
    assert contraction_gap(circle(21, radius=0.1), circle(21), k=20, max_length=2.0) == (
        pytest.approx(math.sqrt(3) * 0.1 - 0.2 * math.sin(math.pi / 21), rel=1e-12)
    )
    assert contraction_gap(cloud(20), cloud(20)) == 0
    assert contraction_gap(cloud(20), 3 * cloud(20), loop_weight=0.0, max_length=50.0) == 0


def test_gap_grows_with_contraction():
    """Breaks if the measure does not order what it is meant to order."""
    real = cloud(20)
    gaps = [contraction_gap(real, scale * real) for scale in (1.0, 0.8, 0.5, 0.2, 0.01)]
    assert gaps == sorted(gaps)
    assert len(set(gaps)) == len(gaps)


@pytest.mark.parametrize("count", [0, 1])
def test_gap_of_sets_without_distances(count):
    """Breaks on the diameter of nothing."""
    assert contraction_gap(cloud(count), cloud(5)) == 0
    assert contraction_gap(cloud(3), cloud(count)) >= 0


def test_gap_leaves_the_graph_alone():
    """Breaks if a measure demands, or leaks, gradients."""
    points = cloud(10).requires_grad_()
    assert contraction_gap(points, 0.5 * points) > 0
    assert points.grad is None


def test_ratio_of_mean_distances():
    """Breaks if distances are squared, or pairs counted with themselves unequally."""

    def spread(points):
        pairs = list(combinations(points.tolist(), 2))
        return sum(math.dist(u, v) for u, v in pairs) / len(pairs)

    before, after = cloud(9), 0.7 * cloud(9, seed=1)
    expected = spread(after) / spread(before)
    assert contraction_ratio(before, after) == pytest.approx(expected, rel=1e-12)


def test_one_common_anchor_contracts_by_the_connection_ratio():
    """Breaks if the ratio is not that of Eq. 8 in its limiting case, all anchors equal."""
    points = cloud(12).float()
    connected = 0.5 * points + 0.5 * cloud(1, seed=1).float()
    assert contraction_ratio(points, connected) == pytest.approx(0.5, rel=1e-6)


def test_ratio_without_distances():
    """Breaks with a division by zero."""
    same, spread = torch.ones(4, 3), cloud(4)
    assert contraction_ratio(same, same) == 1
    assert contraction_ratio(same, spread) == math.inf
    assert contraction_ratio(spread, same) == 0
    assert contraction_ratio(cloud(1), cloud(1)) == 1
    assert contraction_ratio(cloud(0), cloud(0)) == 1


def test_ratio_refuses_points_that_are_not_finite():
    """Breaks if NaN is reported as a measurement."""
    with pytest.raises(ValueError, match="finite"):
        contraction_ratio(cloud(3), math.nan * cloud(3))
