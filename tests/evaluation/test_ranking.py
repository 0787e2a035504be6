"""DD-Ranking's scores: the published landmarks, bounds, and fractions instead of percent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reta.errors import UsageError
from reta.evaluation.ranking import (
    Ranking,
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)

SHARE = st.floats(0, 1)


@pytest.mark.parametrize(
    ("improvement", "recovery", "score"),
    [(0, 0, 0.269), (1, 0, 0.545), (-1, 1, 0.0), (0.2, 0.4, 0.228), (0.3, 0.2, 0.291)],
)
def test_landmarks_of_the_paper(improvement, recovery, score):
    """Breaks when the sign of HLR, the weight or the normalisation is wrong."""
    assert label_robust_score(recovery, improvement) == pytest.approx(score, abs=5e-4)


@given(SHARE, SHARE, SHARE, SHARE, SHARE)
def test_scores_stay_between_0_and_1_and_grow_with_the_set(real, hard, own, chance, weight):
    """Breaks when a better set gets a lower score, or a score leaves its range."""
    recovery, improvement = hard_label_recovery(real, hard), improvement_over_random(own, chance)
    score = label_robust_score(recovery, improvement, weight)
    assert -1e-12 <= score <= 1 + 1e-12
    better = label_robust_score(hard_label_recovery(real, min(1, hard + 0.1)), improvement, weight)
    assert better >= score - 1e-12


@given(SHARE, SHARE, SHARE, SHARE)
def test_augmentation_score_is_0_269_without_gain(augmented, plain, other, another):
    """Breaks when a gain in one setting is not weighed against the other."""
    none = augmentation_robust_score(augmented, augmented, plain, plain)
    assert none == pytest.approx(0.2689, abs=1e-4)
    score = augmentation_robust_score(augmented, other, plain, another)
    mirrored = augmentation_robust_score(plain, another, augmented, other)
    assert score == pytest.approx(mirrored)
    assert -1e-12 <= score <= 1 + 1e-12


def test_percent_is_refused():
    """Breaks when percent goes into the exponential, as in the public code."""
    with pytest.raises(ValueError, match="fractions, not percent"):
        label_robust_score(20.0, 30.0)


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"rates": ()}, {"rates": (0.0,)}, {"weight": 2}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    """Breaks when they are only met after the first student."""
    with pytest.raises(UsageError):
        Ranking(**settings)
