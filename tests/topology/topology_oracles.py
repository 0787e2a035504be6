"""Slow or foreign ways to compute what `reta.topology` computes; they share no code with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import persim
import ripser
import torch
from scipy.sparse import coo_matrix
from torch import Tensor

Edge = tuple[int, int]
Point = Sequence[float]


def mutual_edges(points: Sequence[Point], k: int, max_length: float = math.inf) -> list[Edge]:
    """The mutual k-NN graph, by loops over points."""

    def nearest(u: int) -> set[int]:
        others = [v for v in range(len(points)) if v != u]
        return set(sorted(others, key=lambda v: (math.dist(points[u], points[v]), v))[:k])

    near = [nearest(u) for u in range(len(points))]
    return [
        (u, v)
        for u, v in combinations(range(len(points)), 2)
        if v in near[u] and u in near[v] and math.dist(points[u], points[v]) <= max_length
    ]


def ripser_diagrams(points: Tensor, k: int, max_length: float) -> list[np.ndarray]:
    """Diagrams of degree 0 and 1 by ripser (single precision), essential deaths clipped."""
    cloud = points.tolist()
    edges = mutual_edges(cloud, k, max_length)
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    lengths = [math.dist(cloud[u], cloud[v]) for u, v in edges]
    # COO keeps the zero lengths of duplicate points, which other formats would drop.
    matrix = coo_matrix((lengths, (rows, columns)), shape=(len(cloud), len(cloud)))
    diagrams = ripser.ripser(matrix, distance_matrix=True, maxdim=1)["dgms"]
    return [np.minimum(diagram, max_length) for diagram in diagrams]


def bottleneck(left: Tensor | np.ndarray, right: Tensor | np.ndarray) -> float:
    """Bottleneck distance of two finite diagrams, by persim."""
    return float(persim.bottleneck(np.asarray(left), np.asarray(right)))


def betti_numbers(count: int, edges: Iterable[Edge]) -> tuple[int, int]:
    """Betti numbers 0 and 1 of a flag complex, from ranks of its boundary matrices over GF(2)."""
    index = {edge: i for i, edge in enumerate(edges)}
    triangles = [t for t in combinations(range(count), 3) if all(e in index for e in _sides(t))]
    edge_boundaries = [1 << u | 1 << v for u, v in index]
    triangle_boundaries = [sum(1 << index[side] for side in _sides(t)) for t in triangles]
    merges = _rank(edge_boundaries)
    return count - merges, len(index) - merges - _rank(triangle_boundaries)


def _sides(triangle: Sequence[int]) -> Iterable[Edge]:
    return combinations(triangle, 2)


def _rank(rows: list[int]) -> int:
    """Rank over GF(2) of rows written as bit masks."""
    pivots: dict[int, int] = {}
    for row in rows:
        while row and (top := row.bit_length()) in pivots:
            row ^= pivots[top]
        if row:
            pivots[top] = row
    return len(pivots)


def circle(count: int, radius: float = 1.0) -> Tensor:
    """Equally spaced points on a circle, `(count, 2)`."""
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return radius * torch.stack((angles.cos(), angles.sin()), dim=1)


def cloud(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    """Gaussian points, `(count, dim)`."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()


def clouds(classes: int, count: int, dim: int = 3, seed: int = 0) -> Tensor:
    """A stack of different Gaussian clouds, `(classes, count, dim)`."""
    return torch.stack([cloud(count, dim, seed + 100 * c) for c in range(classes)])


def length_matrix(count, edges, lengths):
    """A weighted graph as flag_pairs wants it: infinity where there is no edge."""
    matrix = np.full((count, count), np.inf)
    np.fill_diagonal(matrix, 0)
    first, second = np.asarray(edges).T
    matrix[first, second] = matrix[second, first] = lengths
    return matrix
