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
    longest = torch.tensor([math.inf if max_length is None else max_length], dtype=torch.float64)
    lengths = mutual_knn_lengths(distance_matrices(points[None]), k, longest)[0]
    return torch.from_numpy(np.argwhere(np.triu(np.isfinite(lengths), 1)))


def mutual_knn_lengths(distances: Floats, k: int, max_lengths: Tensor) -> Floats:
    """The graphs of `mutual_knn_graph` in a stack of clouds.

    Args:
        distances: `(c, n, n)`, as `distance_matrices` returns them.
        k: neighbours of a point.
        max_lengths: `(c,)`, longest edge kept.

    Returns:
        `(c, n, n)`: the length of each edge, infinity where there is none, 0 on the diagonal.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not (max_lengths >= 0).all():
        raise ValueError(f"max_length must be at least 0, got {float(max_lengths.min())}")
    count = distances.shape[1]
    k, own = min(k, count - 1), np.arange(count)
    if k < 1:  # at most one point
        return np.zeros_like(distances)
    others = distances.copy()
    others[:, own, own] = np.inf
    radius = np.partition(others, k - 1, axis=2)[..., k - 1 : k]  # (c, n, 1): to the k-th neighbour
    closer, tied = others < radius, others == radius
    places = k - closer.sum(axis=2, keepdims=True)  # left to the neighbours at the radius
    near = closer | (tied & (tied.cumsum(axis=2) <= places))
    longest = max_lengths.double().cpu().numpy()[:, None, None]
    joined = near & near.swapaxes(1, 2) & (distances <= longest)
    joined[:, own, own] = True
    return np.where(joined, distances, np.inf)


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
