"""WMDD: the barycentre as a fixed point, the objective in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from plain import cross_entropy, inside
from reta.errors import UsageError
from reta.models import Classifier
from reta.synthesis.matching import Scene, Turn
from reta.synthesis.pool import Pool
from reta.synthesis.probes import probe
from reta.synthesis.wmdd import BarycentreMatching, barycentre
from small_world import SIZE


def test_a_single_point_is_the_mean() -> None:
    """The barycentre with one point of support."""
    features = np.random.default_rng(0).normal(size=(7, 3))
    found = barycentre(features, 1, np.random.default_rng(1))
    np.testing.assert_allclose(found[0], features.mean(axis=0), atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_each_point_is_the_mean_of_its_share(seed: int) -> None:
    """Twelve features, three points: a best assignment of four to each, whose means they are."""
    features = np.random.default_rng(seed).normal(size=(12, 4))
    points = barycentre(features, 3, np.random.default_rng(seed + 10))
    cost = ((features[:, None] - points[None]) ** 2).sum(axis=2)
    rows, columns = linear_sum_assignment(np.repeat(cost, 4, axis=1))
    for point in range(3):
        share = features[rows[columns // 4 == point]]
        np.testing.assert_allclose(points[point], share.mean(axis=0), atol=1e-6)


def test_more_points_than_features_are_no_error() -> None:
    """Fewer real images than synthetic ones."""
    features = np.random.default_rng(0).normal(size=(2, 3))
    assert np.isfinite(barycentre(features, 5, np.random.default_rng(0))).all()


def test_without_pot_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare ImportError tells nobody what to install."""
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    with pytest.raises(UsageError, match=r"reta\[wmdd\]"):
        barycentre(np.ones((2, 2)), 1, np.random.default_rng(0))


def test_the_objective_by_hand(committee: list[Classifier], pool: Pool) -> None:
    """Statistics of the batch for those of the class, squared norms, or another teacher's goals."""
    teacher, ipc, labels = committee[0], 3, [1, 3]
    objective = BarycentreMatching(class_weight=0.7, bn_weight=0.2)
    matcher = objective.at_work(Scene([probe(teacher)], pool, labels, ipc, seed=4))
    images = torch.rand(1, 6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    every = torch.tensor(labels).repeat_interleave(ipc)
    loss, gap, _ = matcher(images, Turn(0, every, range(1)))
    seen = inside(teacher, images[0])
    goals = np.concatenate([matcher.goals(label).double().numpy() for label in labels])
    expected_gap = 0.0
    for position, label in enumerate(labels):
        own = slice(position * ipc, (position + 1) * ipc)
        real = inside(teacher, pool.pixels(pool.members(label))).entering
        for (layer, there), (_, here) in zip(real, seen.entering, strict=True):
            if isinstance(layer, nn.BatchNorm2d):
                axes = (0, 2, 3)
                mean = here[own].mean(axis=axes) - there.mean(axis=axes)
                variance = here[own].var(axis=axes) - there.var(axis=axes)
                expected_gap += (np.linalg.norm(mean) + np.linalg.norm(variance)) / len(labels)
    expected = 0.7 * cross_entropy(seen.logits, every.numpy()) + 0.2 * expected_gap
    expected += np.linalg.norm(seen.features - goals)
    assert gap.item() == pytest.approx(expected_gap, rel=1e-4)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_goals_are_barycentres_of_the_first_teachers_features(
    committee: list[Classifier], pool: Pool
) -> None:
    """Of one image per class: the mean feature."""
    matcher = BarycentreMatching().at_work(Scene([probe(committee[0])], pool, [2], 1, seed=0))
    mean = pool.features[pool.members(2)].mean(dim=0)
    torch.testing.assert_close(matcher.goals(2)[0], mean, rtol=1e-5, atol=1e-5)
