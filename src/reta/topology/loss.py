"""The topology loss: synthetic classes should have the components and loops of real ones."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from .image import Weight, induced_images
from .persistence import Essential, lengths_or_diameters

GraphScope = Literal["union", "separate"]


def topology_loss(
    synthetic: Tensor,
    real: Tensor,
    k: int = 15,
    max_length: float | None = None,
    size: int = 32,
    bandwidth: float = 0.05,
    loop_weight: float = 1.0,
    essential: Essential = "clip",
    graph: GraphScope = "union",
) -> Tensor:
    """Eq. 11: topology loss of one class, ‖I⁰(S) − I⁰(R)‖² + γ ‖I¹(S) − I¹(R)‖².

    Args:
        synthetic: S, `(n, d)`; gradients flow into it.
        real: R, `(m, d)`; gradients flow into it where asked for.
        k: neighbours of a point, see `mutual_knn_graph`.
        max_length: longest edge kept, in distance units; None is the diameter of `real`, detached.
        size: see `persistence_image`.
        bandwidth: see `persistence_image`.
        loop_weight: γ.
        essential: "clip" or "drop", see `persistence_diagrams`.
        graph: "union" builds one graph on both sets and gives each set the edges between its own
            points; "separate" builds a graph on each set.

    Returns:
        A scalar of the dtype and on the device of `synthetic`; 0 if that has fewer than two points.

    Raises:
        ValueError: a point is not finite, or an argument is out of range.
    """
    return topology_losses(
        synthetic[None],
        real[None],
        k=k,
        max_lengths=max_length,
        size=size,
        bandwidth=bandwidth,
        loop_weight=loop_weight,
        essential=essential,
        graph=graph,
    )[0]


def topology_losses(
    synthetic: Tensor,
    real: Tensor,
    *,
    k: int = 15,
    max_lengths: float | Tensor | None = None,
    size: int = 32,
    bandwidth: float = 0.05,
    weight: Weight = "persistence",
    loop_weight: float = 1.0,
    essential: Essential = "clip",
    graph: GraphScope = "union",
    real_images: Tensor | None = None,
    workers: int | None = None,
) -> Tensor:
    """`topology_loss` of many classes at once.

    Args:
        synthetic: `(c, n, d)`; gradients flow into it.
        real: `(c, m, d)`; gradients flow into it where asked for.
        k: neighbours of a point, see `mutual_knn_graph`.
        max_lengths: longest edge kept in all classes or, `(c,)`, in each, in distance units; None
            for the diameters of `real`.
        size: see `persistence_image`.
        bandwidth: see `persistence_image`.
        weight: see `persistence_image`.
        loop_weight: γ.
        essential: see `topology_loss`.
        graph: see `topology_loss`.
        real_images: with "separate", `persistence_images(real, ...)` under the same settings,
            `max_lengths` included, to spare their computation.
        workers: threads over the classes; None for as many as torch uses.

    Returns:
        `(c,)` of the dtype and on the device of `synthetic`; 0 if n < 2.

    Raises:
        ValueError: a point is not finite, or an argument is out of range.
    """
    if graph not in get_args(GraphScope):
        raise ValueError(f"graph must be one of {get_args(GraphScope)}, got {graph!r}")
    if real_images is not None and graph == "union":
        raise ValueError('real_images depend on the synthetic points unless graph="separate"')
    if synthetic.shape[1] < 2:  # a single point has no topology
        return synthetic.sum(dim=(1, 2)) * 0

    images = partial(
        induced_images,
        k=k,
        max_lengths=lengths_or_diameters(max_lengths, real),
        size=size,
        bandwidth=bandwidth,
        weight=weight,
        essential=essential,
        workers=workers,
    )
    if graph == "union":
        union, parts = torch.cat((synthetic, real), dim=1), (synthetic.shape[1], real.shape[1])
        synthetic_images, real_images = images(union, parts).unbind(1)
    else:
        synthetic_images = images(synthetic, synthetic.shape[1:2])[:, 0]
        if real_images is None:
            real_images = images(real, real.shape[1:2])[:, 0]
    components, loops = (synthetic_images - real_images).square().sum(dim=(2, 3)).unbind(1)
    return (components + loop_weight * loops).to(synthetic.dtype)
