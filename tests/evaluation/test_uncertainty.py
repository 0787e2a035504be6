"""Means, deviations and intervals against SciPy's, and coverage of the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reta.evaluation.uncertainty import paired_difference, spread


def test_spread_keeps_seeds_and_students_apart():
    """Breaks when the students of all sets are pooled, which mixes two kinds of scatter."""
    found = spread([[0.5, 0.7], [0.8, 0.8]])
    assert found.mean == pytest.approx(0.7)
    assert found.std_seeds == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert found.std_students == pytest.approx(np.sqrt((0.02 + 0) / 2))
    alone = spread([[0.5]])
    assert (alone.std_seeds, alone.std_students) == (0, 0)


def test_t_interval_is_scipys():
    """Breaks when seeds are not paired, or students are counted as independent seeds."""
    rng = np.random.default_rng(0)
    ours, base = rng.normal(0.6, 0.1, (5, 3)), rng.normal(0.5, 0.1, (5, 3))
    found = paired_difference(ours.tolist(), base.tolist())
    test = stats.ttest_rel(ours.mean(axis=1), base.mean(axis=1))
    interval = test.confidence_interval(0.95)
    assert (found.t_low, found.t_high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((ours - base).mean())


def test_bootstrap_agrees_with_scipys_over_seeds():
    """Breaks when resampling is not in pairs: independent sides give a wider interval."""
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 0.2, 40)
    ours = base + rng.normal(0.05, 0.02, 40)
    found = paired_difference(ours[:, None].tolist(), base[:, None].tolist())
    expected = stats.bootstrap(
        (ours - base,), np.mean, method="percentile", rng=rng, n_resamples=4000
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-3)
    assert found.high - found.low < 0.03


def test_unequal_sets_are_not_paired():
    """Breaks when the first values are paired and the rest forgotten."""
    assert paired_difference([[0.1], [0.2]], [[0.1]]) is None
    assert paired_difference([[0.1, 0.2]], [[0.1]]) is None
    assert paired_difference([[0.1, 0.2], [0.1]], [[0.1, 0.2], [0.1]]) is None


def test_the_same_sets_differ_by_nothing():
    """Breaks when the two sides are resampled apart."""
    values = [[0.1, 0.9], [0.4, 0.6]]
    found = paired_difference(values, values)
    assert (found.mean, found.low, found.high, found.t_low, found.t_high) == (0, 0, 0, 0, 0)
