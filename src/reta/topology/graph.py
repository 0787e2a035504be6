"""The mutual k-nearest-neighbour graph of a point cloud."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def mutual_knn_graph(points: Tensor, k: int, max_length: float | None = None) -> Tensor:
    """Join two points when each is among the k nearest neighbours of the other.

    More than k + 1 identical points are not all joined: the first ones are everybody's nearest.

    Args:
        points: `(n, d)`.
        k: neighbours of a point, itself excluded; at most n - 1 are used. Of equally distant
            neighbours those of lower index come first.
        max_length: edges longer than this are left out, in distance units; None keeps all.

    Returns:
        `(m, 2)` int64 edges (u, v) with u < v, in lexicographic order, on the CPU.

    Raises:
        ValueError: a point is not finite, `k` is below 1, or `max_length` is negative.
    """
    longest = math.inf if max_length is None else max_length
    return torch.from_numpy(mutual_knn_edges(distance_matrices(points[None])[0], k, longest))


def mutual_knn_edges(distances: Floats, k: int, max_length: float) -> Indices:
    """The graph of `mutual_knn_graph`, `(m, 2)`, from the matrix `(n, n)` of distances."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not max_length >= 0:
        raise ValueError(f"max_length must be at least 0, got {max_length}")
    k = min(k, len(distances) - 1)
    if k < 1:  # at most one point
        return np.empty((0, 2), dtype=np.int64)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    radius = np.partition(others, k - 1, axis=1)[:, k - 1 : k]  # (n, 1): to the k-th neighbour
    closer, tied = others < radius, others == radius
    places = k - closer.sum(axis=1, keepdims=True)  # left to the neighbours at the radius
    near = closer | (tied & (tied.cumsum(axis=1) <= places))
    joined = near & near.T & (distances <= max_length)
    return np.argwhere(np.triu(joined)).astype(np.int64, copy=False)


def distance_matrices(points: Tensor) -> Floats:
    """Euclidean distances within each cloud of a stack.

    Args:
        points: `(c, n, d)`.

    Returns:
        `(c, n, n)` on the CPU: symmetric, with a zero diagonal.

    Raises:
        ValueError: a point is not finite, or the shape is another.
    """
    count = points.shape[1]
    first, second = np.triu_indices(count, 1)
    matrices = np.zeros((len(points), count, count))
    matrices[:, first, second] = matrices[:, second, first] = pair_distances(points).cpu().numpy()
    return matrices


def diameters(points: Tensor) -> Tensor:
    """The largest distance within each cloud of a stack, 0 for fewer than two points.

    Args:
        points: `(c, n, d)`.

    Returns:
        `(c,)` float64, detached.
    """
    distances = pair_distances(points)
    return distances.amax(dim=1) if distances.shape[1] else distances.new_zeros(len(points))


def pair_distances(points: Tensor) -> Tensor:
    """Distances of all pairs u < v of each cloud: `(c, n, d)` -> `(c, n (n - 1) / 2)`, detached.

    They are float64 and come from differences: the matmul formula behind `torch.cdist` loses
    near-duplicates, and a contracted class consists of them.
    """
    if points.ndim != 3:
        raise ValueError(f"expected points of shape (n, d), got {tuple(points.shape[1:])}")
    clouds = points.detach().double()
    if not torch.isfinite(torch.linalg.vector_norm(clouds)):  # of all values: one pass, no mask
        raise ValueError("points must be finite, found NaN or infinity")
    return torch.stack([torch.pdist(cloud) for cloud in clouds])
