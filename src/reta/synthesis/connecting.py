"""A connection at work: choose an anchor for every image of a block, blend it in, and measure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from reta.synthesis.canvas import Canvas
from reta.synthesis.connection import Connection, Query, fit_gap, resample, residual_connection
from reta.synthesis.embedding import embed_class
from reta.synthesis.pool import Pool
from reta.synthesis.retrieval import edge_complexity
from reta.topology import contraction_ratio


def choose(
    canvas: Canvas,
    connection: Connection,
    pool: Pool,
    labels: Sequence[int],
    used: torch.Tensor | None,
    size: int,
) -> torch.Tensor:
    """Return the anchors of all images, pool indices ``(ipc, classes)``.

    Args:
        canvas: the images.
        connection: what chooses.
        pool: the real images.
        labels: the classes.
        used: ``(blocks so far, ipc, classes)``, as `Query` has it for one class.
        size: resolution at which they will be connected.
    """
    kind = connection.embedding
    embeddings = canvas.features(kind=kind)
    queries = (
        Query(
            pool,
            label,
            embeddings[column],
            None if used is None else used[..., column],
            size,
            embed_class(pool, label, canvas.eyes(kind), kind),
        )
        for column, label in enumerate(labels)
    )
    return torch.stack([connection.choose(query) for query in queries], dim=1)


def connect(
    canvas: Canvas, anchors: torch.Tensor, pool: Pool, size: int, alpha: float
) -> dict[str, float]:
    """Blend anchors in, at the next block's resolution, and return what that did.

    Args:
        canvas: the images, which are changed.
        anchors: pool indices ``(ipc, classes)``.
        pool: the real images.
        size: the next block's resolution.
        alpha: weight of the synthetic images.

    Returns:
        the fit gap of Eq. 3, the complexity of Eq. 5 of what was blended in, how many distinct
        anchors a class has, and the contraction ratio of Eq. 8; the latter two are means over
        classes.
    """
    patches = resample(pool.pixels(anchors).flatten(0, 1), size)
    patches = patches.unflatten(0, anchors.shape).to(canvas.pixels.device)
    canvas.pixels = canvas.resized(size)
    before = canvas.features()  # at the new resolution, so that the ratio is the connection's
    images = canvas.shown(canvas.pixels)
    gap = float(fit_gap(images, patches))
    canvas.take(residual_connection(images, patches, alpha))
    pairs = zip(before.cpu(), canvas.features().cpu(), strict=True)
    ratios = [contraction_ratio(old, new) for old, new in pairs]
    ratios = [ratio for ratio in ratios if math.isfinite(ratio)]  # not where all were one
    distinct = [len(column.unique()) for column in anchors.T]
    return {
        "fit_gap": gap,
        "complexity": float(edge_complexity(patches.flatten(0, 1)).mean()),
        "distinct_anchors": sum(distinct) / len(distinct),
        "contraction_ratio": sum(ratios) / len(ratios) if ratios else 1.0,
    }
