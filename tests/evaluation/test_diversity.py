"""Coverage and diversity against brute force and against sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from reta.evaluation.diversity import anchor_reuse, effective_number, manifold_scores


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """The four scores point by point, balls from scikit-learn's neighbour search."""

    def radii(points: np.ndarray, count: int) -> np.ndarray:
        return NearestNeighbors(n_neighbors=count + 1).fit(points).kneighbors(points)[0][:, -1]

    own = radii(real, k)
    inside = [[np.linalg.norm(r - f) <= own[i] for i, r in enumerate(real)] for f in fake]
    scores = {
        "precision": np.mean([any(row) for row in inside]),
        "density": np.mean([sum(row) for row in inside]) / k,
        "coverage": np.mean([any(row[i] for row in inside) for i in range(len(real))]),
        "recall": 0.0,
    }
    if len(fake) > 1:
        reach = radii(fake, min(k, len(fake) - 1))
        scores["recall"] = np.mean(
            [any(np.linalg.norm(r - f) <= reach[j] for j, f in enumerate(fake)) for r in real]
        )
    return scores


@pytest.mark.parametrize(("n", "m", "k"), [(20, 20, 5), (30, 4, 5), (12, 1, 3), (6, 40, 2)])
def test_scores_are_those_of_the_definitions(n, m, k):
    """Breaks when a ball has the wrong radius, centre or set, or a share the wrong denominator."""
    rng = np.random.default_rng(n * m)
    real, fake = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 0.5
    scores = manifold_scores(torch.from_numpy(real), torch.from_numpy(fake), k)
    assert scores == pytest.approx(brute_force(real, fake, k))


def test_a_set_covers_itself_and_nothing_far_away():
    """Breaks when a point is not in its own ball, or balls are larger than the set they cover."""
    points = torch.randn(25, 4, generator=torch.Generator().manual_seed(0))
    scores = manifold_scores(points, points)
    assert scores["coverage"] == scores["recall"] == scores["precision"] == 1
    assert set(manifold_scores(points, points + 1000).values()) == {0.0}


@given(st.integers(1, 8))
@settings(deadline=None, max_examples=20)
def test_effective_number_counts_different_images(count):
    """Breaks when copies are counted as new images, or orthogonal ones as alike."""
    basis = torch.eye(8)[:count]
    assert effective_number(basis) == pytest.approx(count)
    assert effective_number(basis.repeat(3, 1)) == pytest.approx(count)
    mixed = F.normalize(basis + 1, dim=1)
    assert 1 - 1e-6 <= effective_number(mixed) <= count + 1e-6


def test_anchor_reuse_by_hand():
    """Breaks when reuse is counted over classes together: anchors of two classes never meet."""
    start = [[1, 2, 3, 4], [5, 6, 7, 8]]
    last = [[1, 1, 1, 2], [5, 5, 6, 6]]
    assert anchor_reuse([start, last]) == [
        {"distinct": 1.0, "largest": 0.25},
        {"distinct": 0.5, "largest": 0.625},
    ]
