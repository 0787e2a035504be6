"""The geometry that is reported: κ, distances, curves, diagrams."""

import json
import math

import pytest
import torch

from reta.evaluation.geometry import class_features, measure
from reta.models import Classifier
from reta.synthesis.pool import Pool
from reta.topology import betti_curve, persistence_diagrams
from small_world import CLASSES

LABELS = range(CLASSES)


@pytest.fixture(scope="module")
def spread(pool: Pool) -> torch.Tensor:
    """Five real images of each class, as if they were synthetic."""
    return torch.stack([pool.images.pixels(pool.members(label)[:5]) for label in LABELS])


def test_kappa_is_the_area_between_the_curves(
    committee: list[Classifier], pool: Pool, spread: torch.Tensor
) -> None:
    """κ of another pair of sets than the features reported, or an average over fewer draws."""
    sides = class_features(committee[0], pool, spread, LABELS, draws=3)
    expected = []
    for side in sides:
        gaps = []
        for real in side.real:
            longest = float(torch.pdist(real.double()).max())
            lengths = torch.linspace(0, longest, 20_001, dtype=torch.float64)
            middle = (lengths[1:] + lengths[:-1]) / 2
            gap = sum(
                (betti_curve(a, middle) - betti_curve(b, middle)).clamp(min=0).sum()
                for a, b in zip(
                    persistence_diagrams(real, 15, longest),
                    persistence_diagrams(side.synthetic, 15, longest),
                    strict=True,
                )
            )
            gaps.append(float(gap) * longest / 20_000)
        expected.append(sum(gaps) / len(gaps))
    measured = measure(committee[0], pool, spread, LABELS, draws=3)
    assert measured["kappa"] == pytest.approx(expected, rel=0.02, abs=1e-6)
    assert max(expected) > 1e-3
    assert measured["kappa_mean"] == pytest.approx(sum(expected) / CLASSES, rel=0.02)


def test_a_collapsed_class_has_lost_more(
    committee: list[Classifier], pool: Pool, spread: torch.Tensor
) -> None:
    """A κ that does not see the very thing it is for: images that became one."""
    collapsed = spread[:, :1].expand_as(spread)
    before = measure(committee[0], pool, spread, LABELS)
    after = measure(committee[0], pool, collapsed, LABELS)
    assert after["kappa_mean"] > 2 * before["kappa_mean"]
    assert after["intra_class_distance"]["synthetic"] == pytest.approx(0, abs=1e-6)
    assert after["intra_class_distance"]["real"] == before["intra_class_distance"]["real"]


def test_every_method_meets_the_same_real_points(
    committee: list[Classifier], pool: Pool, spread: torch.Tensor
) -> None:
    """Methods held against different real images, so that their κ cannot be compared."""
    one = class_features(committee[0], pool, spread, LABELS, draws=2)
    other = class_features(committee[0], pool, 255 - spread, LABELS, draws=2)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.real, b.real, strict=True))
        assert not torch.equal(a.real[0], a.real[1])
        assert len(a.real[0]) == len(a.synthetic) == 5


@pytest.mark.parametrize("ipc", [1, 2, 12])
def test_what_is_kept_is_plain_json(
    committee: list[Classifier], pool: Pool, spread: torch.Tensor, ipc: int
) -> None:
    """NaN or infinity in a file for others, at one image or at more images than real ones."""
    images = spread[:, torch.arange(ipc) % 5]
    measured = measure(committee[0], pool, images, LABELS)
    text = json.dumps(measured, allow_nan=False)
    assert json.loads(text) == measured
    assert len(measured["betti"]) == len(measured["diagrams"]) == CLASSES


def test_the_images_are_those_of_the_diagrams(
    committee: list[Classifier], pool: Pool, spread: torch.Tensor
) -> None:
    """A drawn persistence image of another diagram or scale than the diagram beside it."""
    for facts in measure(committee[0], pool, spread, LABELS, draws=1)["diagrams"][:1]:
        for kind in ("real", "synthetic"):
            for points, image in zip(facts[kind], facts["images"][kind], strict=True):
                side, scale = len(image), facts["max_length"]
                centres = [(index + 0.5) / side for index in range(side)]
                for row, persistence in enumerate(centres):
                    for column, birth in enumerate(centres):
                        expected = sum(
                            (d - b)
                            / scale
                            * math.exp(
                                -((birth - b / scale) ** 2 + (persistence - (d - b) / scale) ** 2)
                                / (2 * 0.05**2)
                            )
                            for b, d in points
                        )
                        assert image[row][column] == pytest.approx(expected, rel=1e-4, abs=1e-9)
