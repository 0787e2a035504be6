"""Dynamic Retrieval Connection: the anchor is the real image that fits best and is simple."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from reta.errors import UsageError
from reta.progress import warn_once
from reta.synthesis.connection import Connection, Query, check_share, check_shares, resample
from reta.synthesis.coreset import medium_order
from reta.synthesis.embedding import Embedding
from reta.synthesis.pool import Pool

ComplexityScale = Literal["minmax", "rank", "zscore", "raw"]
Anchors = Literal["argmin", "distinct", "cells"]
First = Literal["retrieved", "start"]
# Added to J of what must not be chosen. Large and not infinite: where nothing else is left, the
# best of it is chosen, and an assignment at finite cost exists.
_NEVER = 1e6


def fit_complexity_score(
    queries: torch.Tensor, keys: torch.Tensor, complexity: torch.Tensor, trade_off: float = 0.1
) -> torch.Tensor:
    """Eq. 4: J(o | x) = (1 − λ)·‖q(x) − z(o)‖₂² + λ·c(o), with q and z scaled to unit length.

    Args:
        queries: ``(m, d)`` features φ of the synthetic images.
        keys: ``(n, d)`` features φ of the candidates.
        complexity: ``(n,)`` c(o), on the scale it is to count with.
        trade_off: λ; 0 is the nearest neighbour, 1 the simplest image.

    Returns:
        ``(m, n)``, lower is better.
    """
    # On the unit sphere ‖q − z‖² = 2 − 2·q·z: one matrix product instead of m·n differences.
    similarity = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
    return (1 - trade_off) * (2 - 2 * similarity) + trade_off * complexity


def edge_complexity(images: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """Eq. 5: c(o) = Var over the grid of ‖∇(G_σ ∗ o)(u)‖₂².

    Args:
        images: ``(n, channels, h, w)`` in [0, 1], both sides at least 2; squared norms are summed
            over the channels.
        sigma: standard deviation of the Gaussian in pixels; its kernel has radius ⌈3σ⌉.

    Returns:
        ``(n,)``, the population variance; zero for a constant image.
    """
    smooth = _gaussian_blur(images, sigma)
    down, right = torch.gradient(smooth, dim=(2, 3))
    energy = (down.square() + right.square()).sum(dim=1)  # (n, h, w)
    return energy.flatten(1).var(dim=1, correction=0)


def _gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    if sigma == 0:
        return images
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for axis in (2, 3):
        size = images.shape[axis]
        # Indices mirrored at the border pixel; unlike padding, this also serves a radius beyond
        # the image's side, where the mirror repeats.
        period = max(2 * (size - 1), 1)
        index = torch.arange(-radius, size + radius, device=images.device) % period
        index = torch.minimum(index, period - index)
        windows = images.index_select(axis, index).unfold(axis, 2 * radius + 1, 1)
        images = windows @ kernel
    return images


def class_complexity(pool: Pool, label: int, size: int, sigma: float) -> torch.Tensor:
    """Return c(o) ``(m,)`` of a class's real images at a resolution; computed once for a pool."""

    def compute() -> torch.Tensor:
        # Some at a time: the blur needs ten times the memory of its images.
        batches = pool.images.batches(pool.members(label).split(100))
        return torch.cat(
            [edge_complexity(resample(part.float() / 255, size), sigma) for part in batches]
        )

    return pool.once(("complexity", label, size, sigma), compute)


def scale_complexity(complexity: torch.Tensor, scale: ComplexityScale) -> torch.Tensor:
    """Bring the complexities ``(n,)`` of one class pool to the scale of the fit term.

    Raw complexities are some 10⁻⁴, against a fit term of up to 4, so unscaled they never count.
    """
    if scale == "raw":
        return complexity
    if scale == "rank":
        ranks = complexity.argsort(stable=True).argsort(stable=True).to(complexity)
        return ranks / max(len(complexity) - 1, 1)
    if scale == "zscore":
        return (complexity - complexity.mean()) / complexity.std(correction=0).clamp(min=1e-12)
    span = (complexity.max() - complexity.min()).clamp(min=1e-12)
    return (complexity - complexity.min()) / span


def cells(keys: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return which real images lie nearest to which start: its Voronoi cell on the unit sphere.

    Args:
        keys: ``(m, d)`` features φ of the real images of a class.
        starts: ``(ipc,)`` rows of ``keys`` that the synthetic images started from.

    Returns:
        ``(ipc, m)`` booleans; a real image is in one cell, in those of all starts that are equal.
    """
    keys = F.normalize(keys, dim=1)
    similarity = keys[starts] @ keys.T  # (ipc, m)
    return similarity == similarity.amax(dim=0)


def _positions(query: Query) -> torch.Tensor:
    """Return where the start images ``(ipc,)`` of a class are among its members."""
    assert query.used is not None
    return (query.members == query.used[0][:, None]).int().argmax(dim=1)


@dataclass(frozen=True)
class RetrievedAnchor(Connection):
    """DRC: at each connection, retrieve for every synthetic image the candidate of least J.

    Attributes:
        alpha: weight of the synthetic image.
        trade_off: λ of Eq. 4.
        anchors: ``argmin`` lets several images of a class take the same anchor (the paper);
            ``distinct`` gives each its own, at the least total cost; ``cells`` lets each choose of
            its Voronoi cell, the real images that lie nearest to the one it started from, so that
            the images of a class stay as different as their starts were.
        complexity_scale: how c(o) is brought to the scale of the fit term.
        sigma: smoothing of Eq. 5, in pixels.
        candidates: only so many real images of each class, the same at every connection; None is
            all of them.
        margin: keep the current anchor unless another's J is lower by more than this.
        fresh: never blend in an image that was blended into the same synthetic one before, nor
            the one it started from.
        last_alpha: α at the last connection, if another; on a straight line in between.
        embedding: the space of q and z in Eq. 4; the paper's φ is ``features``.
        first: ``retrieved``, or ``start``: the first connection keeps the start image, when the
            synthetic one has hardly left it.
        least: a class with fewer images to choose from keeps the anchors it has: the nearest of
            few is far.
        most: a class of more synthetic images than this keeps the anchors it has: several that
            blend in what is nearest grow alike. None: any number retrieves.
        known: all classes keep their anchors where the first teacher knows less of the real images
            than this, see `Pool.knowledge`: what is near in its features need not be alike.
    """

    alpha: float = 0.5
    trade_off: float = 0.1
    anchors: Anchors = "argmin"
    complexity_scale: ComplexityScale = "minmax"
    sigma: float = 1.0
    candidates: int | None = None
    margin: float = 0.0
    fresh: bool = False
    last_alpha: float | None = None
    embedding: Embedding = "features"
    first: First = "retrieved"
    least: int = 0
    most: int | None = None
    known: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self)
        check_share("connection.trade_off", self.trade_off)
        check_share("connection.known", self.known)
        if self.candidates is not None and self.candidates < 1:
            raise UsageError(f"connection.candidates is {self.candidates}; it must be at least 1")
        if self.least < 0:
            raise UsageError(f"connection.least is {self.least}; it must not be negative")
        if self.most is not None and self.most < 1:
            raise UsageError(f"connection.most is {self.most}; it must be at least 1")
        if self.margin < 0:
            raise UsageError(f"connection.margin is {self.margin}; it must not be negative")
        if self.fresh and self.margin:
            raise UsageError("connection.fresh changes every anchor, connection.margin keeps it")
        for value, choices in (
            (self.anchors, Anchors),
            (self.complexity_scale, ComplexityScale),
            (self.embedding, Embedding),
            (self.first, First),
        ):
            if value not in get_args(choices):
                raise UsageError(f"{value!r} is not one of {', '.join(get_args(choices))}")

    def choose(self, query: Query) -> torch.Tensor:
        """Return pool indices ``(ipc,)``: o* = argmin J over the class, see `Connection`."""
        pool, members = query.pool, query.members
        if query.current is not None and self._stays(query):
            return query.current
        complexity = class_complexity(pool, query.label, query.size, self.sigma)
        keys = pool.features[members] if query.keys is None else query.keys
        cost = fit_complexity_score(
            query.embeddings.double().cpu(),
            keys.double(),
            scale_complexity(complexity.double(), self.complexity_scale),
            self.trade_off,
        )  # (ipc, m)
        if self.anchors == "cells" and query.used is not None:
            cost = cost + _NEVER * ~cells(keys.double(), _positions(query))
        members, cost = self._candidates(query, self._adjusted(query, cost))
        if self.anchors != "distinct" or len(members) < len(cost):
            if self.anchors == "distinct":
                warn_once("a class has fewer real images than ipc: anchors cannot be distinct")
            return members[cost.argmin(dim=1)]
        _, columns = linear_sum_assignment(cost.numpy())
        return members[torch.from_numpy(columns)]

    def caution(self, pool: Pool, ipc: int) -> str | None:
        """Return why classes keep their anchors throughout, if some do."""
        if self._many(ipc):
            return (
                f"Images kept the anchors they began with: there are {ipc} of each class, and "
                f"retrieval is asked for up to {self.most} (connection.most)."
            )
        if pool.knowledge < self.known:
            return (
                "Images kept the anchors they began with: the first teacher knows "
                f"{pool.knowledge:.2f} of the classes, and retrieval is asked for from "
                f"{self.known:g} on (connection.known)."
            )
        labels = pool.labels.unique().tolist()
        few = [label for label in labels if self._few(pool.members(label))]
        if not few:
            return None
        return (
            f"{len(few)} of {len(labels)} classes kept the anchors they began with: they have "
            f"fewer than {self.least} images to retrieve from (connection.least)."
        )

    def _many(self, ipc: int) -> bool:
        return self.most is not None and ipc > self.most

    def _few(self, members: torch.Tensor) -> bool:
        return min(len(members), self.candidates or len(members)) < self.least

    def _stays(self, query: Query) -> bool:
        """Return whether the class keeps the anchors it has without a look at others."""
        assert query.used is not None
        too_early = self.first == "start" and len(query.used) == 1
        unknown = query.pool.knowledge < self.known
        many = self._many(len(query.embeddings))
        return too_early or unknown or many or self._few(query.members)

    def _adjusted(self, query: Query, cost: torch.Tensor) -> torch.Tensor:
        """Return J ``(ipc, m)`` with the current anchor favoured, or all used ones ruled out."""
        if query.used is None or query.current is None:
            return cost
        if self.fresh:
            taken = (query.used[:, :, None] == query.members).any(dim=0)  # (ipc, m)
            return cost + _NEVER * taken
        return cost - self.margin * (query.current[:, None] == query.members)

    def _candidates(self, query: Query, cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images ``(m,)`` to choose from and their costs ``(ipc, m)``.

        Images of medium difficulty come first, as in FADRM's pool; with a margin the current
        anchors stay among them.
        """
        members = query.members
        if self.candidates is None or self.candidates >= len(members):
            return members, cost
        medium = medium_order(query.pool, query.label)[: self.candidates]
        kept = torch.isin(members, medium)
        if query.current is not None and self.margin:
            kept |= torch.isin(members, query.current)
        return members[kept], cost[:, kept]
