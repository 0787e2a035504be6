import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_oracles import cloud, clouds, mutual_edges

from reta.topology import diameters, mutual_knn_graph

# Points of a small integer grid: ties and duplicates everywhere, distances exact.
grids = st.integers(1, 3).flatmap(
    lambda dim: st.lists(st.tuples(*[st.integers(0, 3)] * dim), min_size=1, max_size=9)
)
lengths = st.none() | st.integers(0, 12).map(math.sqrt)


@settings(deadline=None)
@given(points=grids, k=st.integers(1, 10), max_length=lengths)
def test_equals_loops(points, k, max_length):
    """Breaks on a wrong tie, an open cut, a neighbour that is itself, or edges out of order."""
    reach = math.inf if max_length is None else max_length
    edges = mutual_knn_graph(torch.tensor(points), k, max_length)
    assert edges.dtype == torch.int64
    assert edges.shape[1] == 2
    assert list(map(tuple, edges.tolist())) == mutual_edges(points, k, reach)


@settings(deadline=None)
@given(points=grids, k=st.integers(1, 10))
def test_no_vertex_exceeds_k_neighbours(points, k):
    """Breaks if ties at the k-th place are all let in."""
    edges = mutual_knn_graph(torch.tensor(points), k)
    assert edges.flatten().bincount(minlength=1).max() <= k


def test_relabelling_the_points_relabels_the_edges():
    """Breaks if an index, rather than a distance, decides without a tie."""
    points, order = cloud(30), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    edges = {frozenset(edge) for edge in mutual_knn_graph(points, 4).tolist()}
    permuted = mutual_knn_graph(points[order], 4)
    assert {frozenset(edge) for edge in order[permuted].tolist()} == edges


def test_more_neighbours_than_points_gives_the_complete_graph():
    """Breaks if k is not clipped to n - 1."""
    pairs = torch.combinations(torch.arange(6))
    for k in (5, 6, 50):
        assert torch.equal(mutual_knn_graph(cloud(6), k), pairs)


@pytest.mark.parametrize("count", [0, 1])
def test_without_pairs_there_are_no_edges(count):
    """Breaks where n - 1 neighbours are asked of fewer than two points."""
    edges = mutual_knn_graph(torch.zeros(count, 3), 5)
    assert edges.shape == (0, 2)
    assert edges.dtype == torch.int64


def test_near_duplicates_keep_their_neighbours():
    """Breaks if distances come from the matmul formula, or from single precision."""
    contracted = 1000 + 1e-7 * cloud(40, dim=8)
    exact = [[math.dist(u, v) for v in contracted.tolist()] for u in contracted.tolist()]
    assert diameters(contracted[None]).item() == pytest.approx(max(map(max, exact)), rel=1e-12)
    expected = mutual_edges(contracted.tolist(), 5)
    assert list(map(tuple, mutual_knn_graph(contracted, 5).tolist())) == expected


def test_the_longest_edge_survives_a_cut_at_the_diameter():
    """Breaks if the cut and the distances are computed in two ways that round differently."""
    for seed in range(20):
        points = cloud(12, dim=50, seed=seed).float()
        longest = diameters(points[None]).item()
        assert len(mutual_knn_graph(points, 11, longest)) == 66
        assert len(mutual_knn_graph(points, 11, math.nextafter(longest, 0))) == 65


def test_diameters_of_a_stack():
    """Breaks if clouds are mixed up, or small ones have no diameter."""
    stack = clouds(3, 7)
    assert torch.equal(diameters(stack), torch.stack([torch.pdist(c).max() for c in stack]))
    assert torch.equal(diameters(stack[:, :1]), torch.zeros(3).double())
    assert torch.equal(diameters(stack[:, :0]), torch.zeros(3).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [1, 4])
def test_points_that_are_not_finite_are_refused(bad, count):
    """Breaks if NaN slips into comparisons, where it would silently drop edges."""
    points = cloud(count)
    points[0, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        mutual_knn_graph(points, 2)


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 2, "max_length": -1.0}])
def test_arguments_out_of_range_are_refused(arguments):
    """Breaks if a meaningless graph is returned instead of an error that names the argument."""
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        mutual_knn_graph(cloud(4), **arguments)


def test_points_need_two_axes():
    """Breaks if a stack or a vector is taken for a cloud."""
    for points in (torch.zeros(3), torch.zeros(2, 3, 4)):
        with pytest.raises(ValueError, match="shape"):
            mutual_knn_graph(points, 2)
