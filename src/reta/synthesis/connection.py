"""Residual connections: from time to time a real image is blended into each synthetic one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.synthesis.embedding import Embedding
from reta.synthesis.pool import Pool


def resample(patches: torch.Tensor, size: int, grid: int = 1) -> torch.Tensor:
    """Bring real patches ``(n, 3, h, w)`` to ``size`` pixels: the Resample of Eq. 2.

    A patch that is a whole image (``grid`` 1) is resized bilinearly, as FADRM's code does. A
    smaller one, cut from a ``grid × grid`` raster, is tiled, as the paper says.
    """
    if grid == 1 and patches.shape[-1] == size:
        return patches
    tile = -(-size // grid)  # ceil, so that the tiles cover the image
    small = F.interpolate(patches, size=(tile, tile), mode="bilinear", align_corners=False)
    return small.repeat(1, 1, grid, grid)[..., :size, :size]


def residual_connection(
    images: torch.Tensor, anchors: torch.Tensor, alpha: float = 0.5
) -> torch.Tensor:
    """Eq. 2, 6: x ← α·x + (1 − α)·Resample(o, D), with anchors already resampled to D."""
    return alpha * images + (1 - alpha) * anchors


def fit_gap(images: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Eq. 3: Δ, the mean over images ``(..., 3, h, w)`` of ‖x − P‖₂², pixels in [0, 1]."""
    return (images - anchors).square().flatten(-3).sum(dim=-1).mean()


def check_share(name: str, value: float) -> None:
    """Raise UsageError unless a share lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {value}; choose it in [0, 1]")


def check_shares(connection: Connection) -> None:
    """Raise UsageError unless α lies between 0 and 1 at every connection."""
    check_share("connection.alpha", connection.alpha)
    if connection.last_alpha is not None:
        check_share("connection.last_alpha", connection.last_alpha)


def share_at(first: float, last: float | None, index: int, count: int) -> float:
    """Return α of a connection: constant, or on a straight line from the first to the last."""
    if last is None or count < 2:
        return first
    return first + (last - first) * index / (count - 1)


@dataclass(frozen=True)
class Query:
    """What a class asks at a connection: an anchor for each of its synthetic images.

    Attributes:
        pool: the real images.
        label: the class.
        embeddings: ``(ipc, d)`` of the synthetic images.
        used: ``(blocks so far, ipc)`` pool indices of the start images and of all anchors since,
            the last row the current ones; None if the start were no real images and nothing was
            connected yet.
        size: resolution at which the anchors will be connected.
        keys: ``(m, d)`` embeddings of the class's real images; the pool's features by default.
    """

    pool: Pool
    label: int
    embeddings: torch.Tensor
    used: torch.Tensor | None
    size: int
    keys: torch.Tensor | None = None

    @property
    def members(self) -> torch.Tensor:
        """Pool indices ``(m,)`` of the class's real images."""
        return self.pool.members(self.label)

    @property
    def current(self) -> torch.Tensor | None:
        """Pool indices ``(ipc,)`` of the current anchors, if there are any."""
        return None if self.used is None else self.used[-1]


class Connection(Protocol):
    """Chooses, at each connection, the real image that is blended into each synthetic one.

    A class of your own inherits from it and says ``alpha`` and ``choose``; the rest has defaults.
    """

    @property
    def alpha(self) -> float:
        """Weight of the synthetic image at the first connection."""
        ...

    @property
    def last_alpha(self) -> float | None:
        """Its weight at the last connection; None: the same at all."""
        return None

    @property
    def embedding(self) -> Embedding:
        """The space the queries lie in."""
        return "features"

    def choose(self, query: Query) -> torch.Tensor:
        """Return pool indices ``(ipc,)`` of the anchors of one class."""
        ...

    def caution(self, pool: Pool, ipc: int) -> str | None:
        """Return, in a sentence, what a reader should know of its choices from these images."""
        return None


@dataclass(frozen=True)
class FixedAnchor(Connection):
    """FADRM: every synthetic image keeps the real image it started from as its anchor.

    Attributes:
        alpha: weight of the synthetic image.
        last_alpha: its weight at the last connection, if another; on a straight line in between.
    """

    alpha: float = 0.5
    last_alpha: float | None = None
    embedding: ClassVar[Embedding] = "features"

    def __post_init__(self) -> None:
        check_shares(self)

    def choose(self, query: Query) -> torch.Tensor:
        """Return the anchors unchanged."""
        if query.current is None:
            raise UsageError("a fixed anchor needs a start from whole real images")
        return query.current
