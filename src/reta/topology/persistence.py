"""Persistence diagrams of flag complexes, differentiable in the points.

GUDHI finds, on detached distances, which edge gives birth to a feature and which one kills it.
Births and deaths are then the lengths of those edges, read from the live points by torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Literal, get_args

import gudhi
import numpy as np
import torch
from torch import Tensor

from .graph import Floats, Indices, diameters, distance_matrices, mutual_knn_lengths

Essential = Literal["clip", "inf", "drop"]

NEVER = -1  # both ends of the "edge" that kills a feature which never dies


def persistence_diagrams(
    points: Tensor,
    k: int = 15,
    max_length: float | None = None,
    essential: Essential = "clip",
) -> tuple[Tensor, Tensor]:
    """Persistence diagrams of a cloud, in degree 0 (components) and 1 (loops).

    The complex is the flag complex of `mutual_knn_graph`: vertices appear at 0, an edge at its
    length, a triangle with its longest edge. Homology is over Z/2; pairs of zero persistence are
    left out.

    Args:
        points: `(n, d)`; gradients flow into it.
        k: neighbours of a point.
        max_length: longest edge kept, in distance units; None is the diameter of the points.
        essential: what becomes of a feature that never dies: "clip" lets it die at `max_length`,
            a constant, "inf" at infinity, "drop" leaves it out.

    Returns:
        Two diagrams `(m, 2)` of births and deaths, float64, in distance units.

    Raises:
        ValueError: a point is not finite, or an argument is out of range.
    """
    clouds = points[None]
    max_lengths = lengths_or_diameters(max_length, clouds)
    pairs = homology_pairs(clouds, k, max_lengths)
    components, loops = live_diagrams(clouds, pairs, max_lengths, essential)
    return components, loops


def lengths_or_diameters(lengths: float | Tensor | None, points: Tensor) -> Tensor:
    """One length for each cloud of `(c, n, d)`: those given, else the diameters; `(c,)`."""
    if lengths is None:
        return diameters(points)
    given = torch.as_tensor(lengths, dtype=torch.float64, device=points.device).detach()
    if not torch.isfinite(given).all():
        raise ValueError("max_length must be finite; None is the diameter")
    return given.expand(len(points))


def homology_pairs(
    points: Tensor,
    k: int,
    max_lengths: Tensor,
    parts: Sequence[int] | None = None,
    workers: int | None = None,
) -> list[list[Indices]]:
    """Find the edges at which features are born and die, in each cloud of a stack.

    Args:
        points: `(c, n, d)`.
        k: neighbours of a point.
        max_lengths: `(c,)`, longest edge kept.
        parts: sizes of consecutive runs of points, adding up to n. The graph is built on the
            whole cloud; each part is then the subgraph induced on its points. None: one part.
        workers: threads over the clouds; None for as many as torch uses.

    Returns:
        For each cloud, degrees 0 and 1 of the first part, of the second, ..., as `flag_pairs`.
    """
    bounds = np.cumsum([0, *(parts or points.shape[1:2])])

    def pairs_of(lengths: Floats) -> list[Indices]:
        runs = [slice(*bound) for bound in pairwise(bounds)]
        return [bars for run in runs for bars in flag_pairs(lengths[run, run], run.start)]

    graphs = mutual_knn_lengths(distance_matrices(points), k, max_lengths)
    workers = min(workers or torch.get_num_threads(), len(points))
    if workers == 1:
        return [pairs_of(graph) for graph in graphs]
    with ThreadPoolExecutor(workers) as pool:  # GUDHI releases the GIL
        return list(pool.map(pairs_of, graphs))


def flag_pairs(lengths: Floats, first: int = 0) -> tuple[Indices, Indices]:
    """Pair births and deaths in the flag complex of a weighted graph, in degrees 0 and 1.

    Args:
        lengths: `(n, n)`, when each edge appears, infinity where there is none; 0 on the diagonal.
        first: number of the first vertex; the others follow it.

    Returns:
        Two arrays `(b, 4)`: the edge a feature is born with, then the edge it dies with. A birth
        with the vertex v is written (v, v), and (NEVER, NEVER) is the death that does not come.
    """
    tree = gudhi.SimplexTree.create_from_array(lengths, max_filtration=np.finfo(np.float64).max)
    tree.expansion(2)
    # Loops are the top degree if there is no triangle, and GUDHI skips the top degree by default.
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=tree.dimension() <= 1)
    merges, loops, components, open_loops = tree.flag_persistence_generators()
    return (
        _bars(first, merges[:, [0, 0, 1, 2]], np.stack((components, components), axis=1)),
        _bars(first, *loops[:1], *open_loops[:1]),
    )


def _bars(first: int, *generators: Indices) -> Indices:
    """Stack rows of a birth edge and a death edge, or of a birth edge alone, as `(b, 4)`.

    Vertices are counted from ``first``.
    """
    bars = np.full((sum(map(len, generators)), 4), NEVER, dtype=np.int64)
    start = 0
    for rows in generators:
        bars[start : start + len(rows), : rows.shape[1]] = rows + first
        start += len(rows)
    return bars


def live_diagrams(
    points: Tensor, pairs: Sequence[Sequence[Indices]], max_lengths: Tensor, essential: Essential
) -> list[Tensor]:
    """Read births and deaths from the live points.

    Args:
        points: `(c, n, d)`; gradients flow into it.
        pairs: for each cloud, equally many arrays `(b, 4)`, as `homology_pairs` returns them.
        max_lengths: `(c,)`, where "clip" lets essential features die.
        essential: see `persistence_diagrams`.

    Returns:
        A diagram `(m, 2)` for each array, float64, cloud after cloud.
    """
    deaths_of_essential = {
        "clip": max_lengths,
        "inf": torch.full_like(max_lengths, math.inf),
        "drop": torch.zeros_like(max_lengths),  # not after the birth: left out below
    }
    if essential not in deaths_of_essential:
        raise ValueError(f"essential must be one of {get_args(Essential)}, got {essential!r}")

    edges = [torch.from_numpy(np.concatenate(bars)).to(points.device) for bars in pairs]
    both = zip(points.double(), edges, strict=True)
    lengths = torch.cat([edge_lengths(cloud, ends.view(-1, 2)) for cloud, ends in both])
    births, deaths = lengths.view(-1, 2).unbind(1)  # (b,) over all clouds

    sizes = [len(bars) for bars in chain(*pairs)]
    owner = torch.repeat_interleave(torch.tensor(sizes)).to(points.device)  # (b,): which diagram
    never = torch.cat(edges)[:, -1] == NEVER
    cloud = owner // len(pairs[0])
    deaths = torch.where(never, deaths_of_essential[essential][cloud], deaths)

    lasting = deaths > births
    kept = owner[lasting].bincount(minlength=len(sizes)).tolist()
    return list(torch.split(torch.stack((births, deaths), dim=1)[lasting], kept))


def edge_lengths(points: Tensor, edges: Tensor) -> Tensor:
    """Distances between the ends of edges `(m, 2)` of a cloud `(n, d)`: `(m,)`.

    The length of (v, v) is 0. The gradient is 0 at distance 0, where the square root has none.
    """
    proper = edges[:, 0] != edges[:, 1]
    first, second = edges[proper].T
    lengths = torch.linalg.vector_norm(points[first] - points[second], dim=1)
    return points.new_zeros(len(edges)).masked_scatter(proper, lengths)
