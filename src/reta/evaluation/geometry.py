"""The geometry of a distilled set in teacher space, beside that of the real images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from reta.memory import Passes
from reta.models import Classifier
from reta.progress import track
from reta.runtime import random_generator
from reta.synthesis.pool import Pool
from reta.topology import (
    betti_curve,
    contraction_gap,
    persistence_diagrams,
    persistence_image,
)

_DRAWN_CLASSES = 10
_CURVE_POINTS = 120
_IMAGE_SIDE = 24


@dataclass(frozen=True)
class Sides:
    """Features of one class on the unit sphere, as many real as synthetic.

    Attributes:
        real: draws of ``(n, d)`` random real images each.
        synthetic: ``(n, d)``.
    """

    real: list[torch.Tensor]
    synthetic: torch.Tensor


@torch.no_grad()
def class_features(
    teacher: Classifier, pool: Pool, images: torch.Tensor, labels: Sequence[int], draws: int
) -> list[Sides]:
    """Return the features of every class.

    The draws of real images are keyed by the class alone, so that every method and every seed is
    held against the same real points.

    Args:
        teacher: gives φ.
        pool: real images.
        images: ``(classes, ipc, 3, s, s)`` uint8.
        labels: the classes.
        draws: how many random sets of real images are compared with, to average out the choice.
    """
    sides, passes = [], Passes(images.shape[-1])

    def features(part: torch.Tensor) -> torch.Tensor:
        return teacher.features(part.to(teacher.mean.device).float() / 255)

    for label, own in zip(labels, images, strict=True):
        synthetic = F.normalize(torch.cat(passes.of(features, own)), dim=1).cpu()
        members = pool.members(label)
        count = min(len(own), len(members))
        real = [
            F.normalize(pool.features[members[_choice(len(members), count, label, draw)]], dim=1)
            for draw in range(draws)
        ]
        sides.append(Sides(real, synthetic[:count]))
    return sides


def _choice(population: int, count: int, label: int, draw: int) -> torch.Tensor:
    rng = random_generator(0, "geometry", label, draw)
    return torch.from_numpy(rng.permutation(population)[:count])


def measure(
    teacher: Classifier,
    pool: Pool,
    images: torch.Tensor,
    labels: Sequence[int],
    *,
    neighbours: int = 15,
    draws: int = 5,
) -> dict[str, Any]:
    """Return κ by class, mean distances within a class, and curves and diagrams to look at.

    Args:
        teacher: gives φ.
        pool: real images.
        images: ``(classes, ipc, 3, s, s)`` uint8.
        labels: the classes.
        neighbours: k of the mutual k-NN graph.
        draws: random sets of real images over which κ and distances are averaged.
    """
    every = class_features(teacher, pool, images, labels, draws)
    kappa = [
        sum(contraction_gap(real, side.synthetic, neighbours) for real in side.real) / draws
        for side in track(every, "geometry: κ by class", len(every))
    ]
    return {
        "kappa": kappa,
        "kappa_mean": sum(kappa) / len(kappa),
        "intra_class_distance": {
            "real": _mean(_spread(real) for side in every for real in side.real),
            "synthetic": _mean(_spread(side.synthetic) for side in every),
        },
        "betti": [_betti(label, side, neighbours) for label, side in _drawn(labels, every)],
        "diagrams": [_diagrams(label, side, neighbours) for label, side in _drawn(labels, every)],
    }


def _drawn(labels: Sequence[int], every: list[Sides]) -> list[tuple[int, Sides]]:
    return list(zip(labels, every, strict=True))[:_DRAWN_CLASSES]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _spread(points: torch.Tensor) -> float:
    return float(torch.pdist(points.double()).mean()) if len(points) > 1 else 0.0


def _both(side: Sides, neighbours: int) -> tuple[Any, Any, float]:
    real = side.real[0].double()
    length = float(torch.pdist(real).max()) if len(real) > 1 else 0.0
    return (
        persistence_diagrams(real, neighbours, length),
        persistence_diagrams(side.synthetic, neighbours, length),
        length,
    )


def _betti(label: int, side: Sides, neighbours: int) -> dict[str, Any]:
    real, synthetic, length = _both(side, neighbours)
    lengths = torch.linspace(0, length, _CURVE_POINTS, dtype=torch.float64)
    return {
        "label": label,
        "lengths": lengths.tolist(),
        "real": [betti_curve(diagram, lengths).tolist() for diagram in real],
        "synthetic": [betti_curve(diagram, lengths).tolist() for diagram in synthetic],
    }


def _diagrams(label: int, side: Sides, neighbours: int) -> dict[str, Any]:
    real, synthetic, length = _both(side, neighbours)
    return {
        "label": label,
        "max_length": length,
        "real": [diagram.tolist() for diagram in real],
        "synthetic": [diagram.tolist() for diagram in synthetic],
        "images": {
            "real": [_image(diagram, length) for diagram in real],
            "synthetic": [_image(diagram, length) for diagram in synthetic],
        },
    }


def _image(diagram: torch.Tensor, length: float) -> list[list[float]]:
    """Return a persistence image, five digits each: rows are persistence, columns birth."""
    if length <= 0:  # one image alone, or all the same
        return []
    image = persistence_image(diagram, length, size=_IMAGE_SIDE)
    return [[float(f"{value:.5g}") for value in row] for row in image.tolist()]
