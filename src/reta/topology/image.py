"""Persistence images: diagrams as smooth functions on a grid, so that they can be subtracted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .persistence import Essential, homology_pairs, lengths_or_diameters, live_diagrams

Weight = Literal["persistence", "one"]


def persistence_image(
    diagram: Tensor,
    max_length: float,
    size: int = 32,
    bandwidth: float = 0.05,
    weight: Weight = "persistence",
) -> Tensor:
    """Eq. 10: persistence image, I[m] = Σ_j w(p_j) exp(−‖u_m − (b_j, p_j)‖² / (2σ²)).

    The points (b, p) = (birth, death − birth) / max_length of the diagram are weighted and
    smoothed with a Gaussian, without prefactor, at the grid centres u_m of the unit square.

    Args:
        diagram: `(m, 2)` finite births and deaths, in distance units; gradients flow into it.
        max_length: the length that becomes 1 on both axes.
        size: grid points on each axis, at (i + 0.5) / size.
        bandwidth: σ, as a fraction of `max_length`.
        weight: w(p) is p ("persistence") or 1 ("one"); 0 on the diagonal p = 0 either way.

    Returns:
        `(size, size)` float64; rows are persistence, columns are birth.

    Raises:
        ValueError: a death is not finite, or an argument is out of range.
    """
    if not torch.isfinite(diagram).all():
        raise ValueError('a death is not finite: use essential="clip" or "drop", not "inf"')
    if len(diagram) and not 0 < max_length < math.inf:
        raise ValueError(f"max_length must be positive and finite, got {max_length}")
    lengths = torch.full((1,), max_length, dtype=torch.float64, device=diagram.device)
    return _images([diagram.double()], lengths, size, bandwidth, weight)[0]


def persistence_images(
    points: Tensor,
    *,
    k: int = 15,
    max_lengths: float | Tensor | None = None,
    size: int = 32,
    bandwidth: float = 0.05,
    weight: Weight = "persistence",
    essential: Essential = "clip",
    workers: int | None = None,
) -> Tensor:
    """Persistence images of every cloud of a stack, each with its own graph.

    Args:
        points: `(c, n, d)`; gradients flow into it.
        k: neighbours of a point, see `mutual_knn_graph`.
        max_lengths: longest edge kept in all clouds or, `(c,)`, in each, in distance units; None
            for their diameters.
        size: see `persistence_image`.
        bandwidth: see `persistence_image`.
        weight: see `persistence_image`.
        essential: "clip" or "drop", see `persistence_diagrams`.
        workers: threads over the clouds; None for as many as torch uses.

    Returns:
        `(c, 2, size, size)` float64: degrees 0 and 1.
    """
    max_lengths = lengths_or_diameters(max_lengths, points)
    parts = [points.shape[1]]
    return induced_images(
        points, parts, k, max_lengths, size, bandwidth, weight, essential, workers
    )[:, 0]


def induced_images(
    points: Tensor,
    parts: Sequence[int],
    k: int,
    max_lengths: Tensor,
    size: int,
    bandwidth: float,
    weight: Weight,
    essential: Essential,
    workers: int | None,
) -> Tensor:
    """Persistence images of parts of clouds, where one graph on the whole cloud serves all parts.

    Args:
        points: `(c, n, d)`; gradients flow into it.
        parts: sizes of consecutive runs of points, adding up to n; the complex of a part lives
            on the edges between its own points.
        k: neighbours of a point in its whole cloud, see `mutual_knn_graph`.
        max_lengths: `(c,)` longest edge kept; becomes 1 on both axes.
        size: see `persistence_image`.
        bandwidth: see `persistence_image`.
        weight: see `persistence_image`.
        essential: "clip" or "drop", see `persistence_diagrams`.
        workers: threads over the clouds; None for as many as torch uses.

    Returns:
        `(c, len(parts), 2, size, size)` float64: degrees 0 and 1 of each part.
    """
    if essential == "inf":
        raise ValueError('an image has no place for essential="inf": use "clip" or "drop"')
    pairs = homology_pairs(points, k, max_lengths, parts, workers)
    diagrams = live_diagrams(points, pairs, max_lengths, essential)
    lengths = max_lengths.repeat_interleave(2 * len(parts))
    images = _images(diagrams, lengths, size, bandwidth, weight)
    return images.view(len(points), len(parts), 2, size, size)


def _images(
    diagrams: Sequence[Tensor], max_lengths: Tensor, size: int, bandwidth: float, weight: Weight
) -> Tensor:
    """Images `(i, size, size)` of diagrams `(m_i, 2)`, each scaled by its length, `(i,)`."""
    if weight not in get_args(Weight):
        raise ValueError(f"weight must be one of {get_args(Weight)}, got {weight!r}")
    if size < 1 or not bandwidth > 0:
        raise ValueError(f"size and bandwidth must be positive, got {size} and {bandwidth}")
    # Padding with (0, 0), on the diagonal, adds nothing. At length 0 there is only padding.
    scale = max_lengths.where(max_lengths > 0, 1.0)
    bars = pad_sequence(list(diagrams), batch_first=True) / scale[:, None, None]  # (i, m, 2)
    births, deaths = bars.unbind(2)
    persistence = deaths - births  # (i, m)
    weights = persistence if weight == "persistence" else (persistence > 0).double()

    centres = (torch.arange(size, dtype=torch.float64, device=births.device) + 0.5) / size

    def bump(positions: Tensor) -> Tensor:  # (i, m) -> (i, m, size)
        return torch.exp((positions[..., None] - centres).square() / (-2 * bandwidth**2))

    # A Gaussian of the plane is a product of one along each axis; their sum is a matrix product.
    return (weights[..., None] * bump(persistence)).mT @ bump(births)
