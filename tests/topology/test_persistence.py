import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from topology_oracles import (
    betti_numbers,
    bottleneck,
    circle,
    cloud,
    length_matrix,
    mutual_edges,
    ripser_diagrams,
)

from reta.topology import betti_curve, diameters, mutual_knn_graph, persistence_diagrams
from reta.topology.persistence import flag_pairs, live_diagrams


def grid(count, dim, seed):
    """Integer points: equal lengths and duplicates."""
    return torch.randint(0, 4, (count, dim), generator=torch.Generator().manual_seed(seed)).double()


def with_outlier(count, dim, seed):
    """A cloud and a point that has no mutual neighbour once lengths are cut."""
    points = cloud(count, dim, seed)
    return torch.cat((points, points[:1] + 100))


def persistence(diagram):
    return (diagram[:, 1] - diagram[:, 0]).sort(descending=True).values


@pytest.mark.parametrize("make", [cloud, grid, with_outlier])
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 2, 4, 8, 25])
@pytest.mark.parametrize("cut", [1.0, 0.5, 0.2])
def test_agrees_with_ripser(make, dim, k, cut):
    """Breaks on a wrong pairing, a lost essential loop, isolated vertex, duplicate or cut."""
    points = make(24, dim, seed=7 * k + dim)
    max_length = cut * diameters(points[None]).item()
    diagrams = persistence_diagrams(points, k, max_length)
    for ours, theirs in zip(diagrams, ripser_diagrams(points, k, max_length), strict=True):
        assert bottleneck(ours, theirs) < 1e-5 * max_length  # ripser works in single precision


@pytest.mark.parametrize("make", [cloud, grid])
@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_betti_numbers_are_ranks_of_boundary_matrices(make, k):
    """Breaks if any complex of the filtration has other homology than its definition says."""
    points = make(10, 2, seed=k)
    diagrams = persistence_diagrams(points, k, essential="inf")
    cloud_ = points.tolist()
    graph = mutual_edges(cloud_, k)
    steps = sorted({math.dist(*pair) for pair in combinations(cloud_, 2)})
    between = [(low + high) / 2 for low, high in pairwise(steps)]
    for length in (*between, steps[-1]):
        alive = [(u, v) for u, v in graph if math.dist(cloud_[u], cloud_[v]) <= length]
        counts = [betti_curve(diagram, torch.tensor([length])).item() for diagram in diagrams]
        assert tuple(counts) == betti_numbers(len(cloud_), alive)


def test_circle_is_one_loop_from_its_side_to_its_inscribed_triangle():
    """Breaks if triangles are missing (the loop never dies) or appear too early."""
    components, loops = persistence_diagrams(circle(21), k=20)
    side = 2 * math.sin(math.pi / 21)
    assert loops.flatten().tolist() == pytest.approx([side, math.sqrt(3)])
    assert components[:-1].flatten().tolist() == pytest.approx([0, side] * 20)


def test_two_islands_merge_at_their_distance():
    """Breaks if the graph is too sparse to join them, or the last merge is not the longest."""
    islands = torch.cat((0.1 * cloud(10), 0.1 * cloud(10, seed=1) + torch.tensor([5.0, 0, 0])))
    gap = torch.cdist(islands[:10], islands[10:]).min().item()
    components, _ = persistence_diagrams(islands, k=19, essential="drop")
    longest, second = persistence(components)[:2].tolist()
    assert longest == pytest.approx(gap)
    assert second < gap / 5


def test_torus_has_two_loops():
    """Breaks if loops of a surface are filled or missed."""
    ring = circle(10)
    torus = torch.cat((ring.repeat_interleave(10, dim=0), ring.repeat(10, 1)), dim=1)
    bars = persistence(persistence_diagrams(torus, k=99)[1])
    assert bars[1] > 0.9
    assert len(bars) == 2 or bars[2] < 0.5 * bars[1]


def test_order_of_the_points_does_not_matter():
    """Breaks if indices leak into lengths."""
    points, order = cloud(20), torch.randperm(20, generator=torch.Generator().manual_seed(3))
    both = zip(persistence_diagrams(points, 4), persistence_diagrams(points[order], 4), strict=True)
    for diagram, permuted in both:
        assert bottleneck(diagram, permuted) < 1e-12


def test_diagrams_scale_with_the_cloud():
    """Breaks if anything but the default cut is measured in a unit of its own."""
    both = zip(persistence_diagrams(cloud(20)), persistence_diagrams(4 * cloud(20)), strict=True)
    for diagram, scaled in both:
        assert torch.equal(4 * diagram, scaled)  # a power of two: no rounding


@pytest.mark.parametrize("noise", [1e-3, 1e-1, 1.0])
def test_stable_on_a_fixed_edge_set(noise):
    """Breaks if a diagram moves by more than the lengths do, against the stability theorem."""
    points, edges = cloud(20), mutual_knn_graph(cloud(20), 6)

    def diagrams_of(cloud_):
        lengths = (cloud_[edges[:, 0]] - cloud_[edges[:, 1]]).norm(dim=1)
        pairs = flag_pairs(length_matrix(20, edges, lengths))
        far = torch.tensor([100.0]).double()
        return lengths, live_diagrams(cloud_[None], [pairs], far, "clip")

    lengths, diagrams = diagrams_of(points)
    moved_lengths, moved_diagrams = diagrams_of(points + noise * cloud(20, seed=1))
    change = (lengths - moved_lengths).abs().max().item()
    for diagram, moved in zip(diagrams, moved_diagrams, strict=True):
        assert bottleneck(diagram, moved) <= change * (1 + 1e-9)


def test_essential_features():
    """Breaks if a policy touches finite bars, or forgets the essential ones of a degree."""
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    bars = {
        essential: persistence_diagrams(square, 2, 1.25, essential)
        for essential in ("clip", "inf", "drop")
    }
    merges = [[0.0, 1.0]] * 3
    assert [diagram.tolist() for diagram in bars["clip"]] == [[*merges, [0, 1.25]], [[1, 1.25]]]
    assert [diagram.tolist() for diagram in bars["drop"]] == [merges, []]
    assert [diagram.tolist() for diagram in bars["inf"]] == [
        [*merges, [0, math.inf]],
        [[1, math.inf]],
    ]


def test_clipped_loop_has_a_gradient_at_birth_only():
    """Breaks if the clipped death follows the points, or clipping detaches the birth."""
    corners = torch.tensor([[0.0, 0], [1.1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    corners.requires_grad_()
    _, loops = persistence_diagrams(corners, 2, 1.25)
    birth, death = loops[0]
    (birth_gradient,) = torch.autograd.grad(birth, corners, retain_graph=True)
    (death_gradient,) = torch.autograd.grad(death, corners)
    assert birth_gradient[:2].tolist() == [[-1, 0], [1, 0]]  # the longest side, pulled apart
    assert not birth_gradient[2:].any()
    assert not death_gradient.any()


def test_loop_of_identical_points_has_no_gradient():
    """Breaks if the square root is differentiated at the zero length the loop is born with."""
    points = torch.ones(1, 4, 2, dtype=torch.float64, requires_grad=True)
    square = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
    pairs = [flag_pairs(length_matrix(4, square, 0))]
    _, loops = live_diagrams(points, pairs, torch.tensor([2.0]).double(), "clip")
    assert loops.tolist() == [[0, 2]]
    loops.sum().backward()
    assert torch.equal(points.grad, torch.zeros(1, 4, 2).double())


def test_births_and_deaths_follow_their_edges():
    """Breaks if the length read live is that of another edge than GUDHI's."""
    points = circle(5) + 0.05 * cloud(5, dim=2)
    assert torch.autograd.gradcheck(
        lambda moving: persistence_diagrams(moving, 4, 1.9)[1], points.requires_grad_()
    )


def test_cut_is_closed():
    """Breaks if an edge exactly as long as the limit is lost."""
    pair = torch.tensor([[0.0], [3.0], [7.0]])
    components, _ = persistence_diagrams(pair, 2, 4.0, "drop")
    assert components.tolist() == [[0, 3], [0, 4]]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("essential", ["clip", "inf", "drop"])
def test_tiny_clouds(count, essential):
    """Breaks where a cloud without triangles, edges or points is not foreseen."""
    points = cloud(count).requires_grad_()
    components, loops = persistence_diagrams(points, 15, 5.0, essential)
    assert components.shape == (count if essential != "drop" else max(count - 1, 0), 2)
    assert loops.shape == (0, 2)
    assert components.dtype == loops.dtype == torch.float64
    components.nan_to_num(posinf=0).sum().backward()
    assert torch.isfinite(points.grad).all()


def test_identical_points_are_one_component():
    """Breaks if zero-length bars are kept, or if duplicates fall apart."""
    same = torch.ones(6, 3)
    components, loops = persistence_diagrams(same, 5, 2.0)
    assert components.tolist() == [[0, 2]]
    assert loops.shape == (0, 2)
    assert not any(map(len, persistence_diagrams(same, 3)))  # diameter 0: no length to live


def test_float32_points_give_float64_diagrams():
    """Breaks if distances are rounded before they are compared."""
    points = cloud(30).float()
    both = zip(persistence_diagrams(points), persistence_diagrams(points.double()), strict=True)
    for single, double in both:
        assert torch.equal(single, double)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"essential": "keep"}, "clip.*inf.*drop"),
        ({"max_length": math.inf}, "max_length must be finite"),
        ({"max_length": math.nan}, "max_length must be finite"),
        ({"max_length": -1.0}, "max_length must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    """Breaks if an error does not name the argument and what it may be."""
    with pytest.raises(ValueError, match=message):
        persistence_diagrams(cloud(4), **arguments)


def test_points_that_are_not_finite_are_refused():
    """Breaks if NaN reaches GUDHI."""
    with pytest.raises(ValueError, match="points must be finite"):
        persistence_diagrams(torch.full((4, 2), math.nan))
