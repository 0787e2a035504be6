"""The audit: weights by simulation, regressions and AUC against other libraries, planted copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from reta.evaluation.audit import anchor_weights, auc, auc_interval, difference_hash, explained
from reta.synthesis.connection import residual_connection


@given(st.integers(0, 5), st.floats(0.1, 0.9), st.booleans(), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_weights_are_what_the_connections_leave(connections, alpha, has_start, seed):
    """Breaks when the power of α or the share of an anchor is off by one: done to vectors."""
    rng = np.random.default_rng(seed)
    pool = 4
    anchors = [[rng.integers(0, pool, 3).tolist()] for _ in range(connections + has_start)]
    image = torch.zeros(3, pool + 1, dtype=torch.float64)  # how much of each real image it holds
    used = list(anchors)
    start = used.pop(0)[0] if has_start else [pool] * 3
    image[range(3), start] = 1
    for chosen in used:
        held = torch.zeros_like(image)
        held[range(3), chosen[0]] = 1
        image = residual_connection(image, held, alpha)
    if not anchors:
        return
    (found,) = anchor_weights(alpha, anchors, connections)
    for row, weights in zip(image, found, strict=True):
        expected = {i: float(v) for i, v in enumerate(row[:pool]) if v}
        assert weights == pytest.approx(expected)


def test_regression_is_scipys():
    """Breaks when slope and R² are of uncentred pixels, or exchanged."""
    generator = torch.Generator().manual_seed(0)
    anchor = torch.rand(3, 8, 8, generator=generator)
    image = 0.3 * anchor + 0.05 * torch.rand(3, 8, 8, generator=generator)
    slope, share = explained(image, anchor)
    centred = [(one - one.mean(dim=(1, 2), keepdim=True)).flatten() for one in (anchor, image)]
    line = stats.linregress(centred[0].double(), centred[1].double())
    assert slope == pytest.approx(line.slope, rel=1e-5)
    assert share == pytest.approx(line.rvalue**2, rel=1e-5)
    assert explained(anchor, anchor) == pytest.approx((1, 1))
    assert explained(torch.ones(3, 8, 8), anchor) == (0, 0)


def test_auc_is_scikit_learns_and_its_interval_covers_chance():
    """Breaks when ties count fully, or members and others are exchanged."""
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 80) / 2, rng.integers(-2, 7, 50) / 2
    truth = np.r_[np.ones(80), np.zeros(50)]
    assert auc(members, others) == pytest.approx(roc_auc_score(truth, np.r_[members, others]))
    same, low_high = rng.normal(size=(2, 200)), []
    low_high = auc_interval(*same)
    assert low_high[0] < 0.5 < low_high[1]
    low, high = auc_interval(same[0] + 2, same[1])
    assert 0.5 < low < auc(same[0] + 2, same[1]) < high


def test_hash_knows_a_copy_from_another_image():
    """Breaks when a slightly changed copy is far, or any two images are near."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    brighter = (images.float() * 0.8 + 20).to(torch.uint8)
    hashes, copies = difference_hash(images), difference_hash(brighter)
    assert hashes.shape == (12, 64)
    distances = (hashes[:, None] != copies[None]).sum(-1)
    assert distances.diagonal().max() <= 6
    assert distances[~torch.eye(12, dtype=torch.bool)].min() > 12
