"""CV-DD: the vote against a plain sum, who votes, and the priors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plain import cross_entropy, inside, norm_gap
from reta.committee import committee_logits
from reta.errors import UsageError
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.cvdd import CommitteeVoting, Voting, priors, vote_weights, voters
from reta.synthesis.loop import Settings, recover
from reta.synthesis.matching import Scene, Turn
from reta.synthesis.pool import Pool
from reta.synthesis.probes import probe
from small_world import CLASSES, SIZE, make_teacher


def three_teachers() -> list[Classifier]:
    return [make_teacher(seed) for seed in (1, 2, 3)]


def test_the_loss_is_the_weighted_sum_of_two_teachers_objectives(pool: Pool) -> None:
    """A weight on the cross-entropy alone, the wrong pair, or weights that are no softmax."""
    teachers = three_teachers()
    for index, teacher in enumerate(teachers):
        teacher.name = f"net{index}"
    given = {"net0": 64.0, "net1": 60.5, "net2": 51.5}
    objective = CommitteeVoting(prior=given)
    scene = Scene([probe(one) for one in teachers], pool, list(range(CLASSES)), 5, seed=0)
    images = torch.rand(5, CLASSES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(CLASSES)
    loss, gap, _ = objective.at_work(scene)(images, Turn(7, labels, range(5)))
    for group, pair in enumerate([(0, 1), (0, 2), (1, 2), (0, 1), (0, 2)]):
        powers = np.exp([given[f"net{one}"] / 5 for one in pair])
        expected = expected_gap = 0.0
        for weight, one in zip(powers / powers.sum(), pair, strict=True):
            seen = inside(teachers[one], images[group])
            inner = norm_gap(seen, 10)
            expected += weight * (cross_entropy(seen.logits, labels.numpy()) + 0.01 * inner)
            expected_gap += weight * inner
        assert loss[group].item() == pytest.approx(expected, rel=1e-4)
        assert gap[group].item() == pytest.approx(expected_gap, rel=1e-4)


def test_who_votes() -> None:
    """Pairs in turn; of one image per class the best two; never more voters than teachers."""
    assert voters([1, 2, 3], 2, 10) == [(0, 1), (0, 2), (1, 2)]
    assert voters([5, 9, 7], 2, 1) == [(1, 2)]
    assert voters([5], 2, 10) == [(0,)]
    assert len(voters([1] * 5, 2, 10)) == 10  # the ten pairs of the authors' five teachers


def test_weights_are_a_softmax_at_the_temperature() -> None:
    """The authors divide percents by 5; shares in [0, 1] would make all weights alike."""
    first, second = vote_weights([64.0, 51.6], 5.0)
    assert first / second == pytest.approx(np.exp(12.4 / 5))
    assert first + second == pytest.approx(1)


def test_priors_are_measured_or_given(committee: list[Classifier], pool: Pool) -> None:
    """A prior outside 0 to 100, that changes from call to call, or a name that is not there."""
    measured = priors(committee, pool, 0)
    assert measured == priors(committee, pool, 0)
    assert all(0 <= one <= 100 for one in measured)
    assert priors(committee, pool, 0, {"convnet3": 12}) == [12.0, 12.0]
    with pytest.raises(UsageError, match="convnet3"):
        priors(committee, pool, 0, {"resnet18": 50.0})


def test_labels_are_voted_on_if_asked(committee: list[Classifier], pool: Pool) -> None:
    """A mean where weights were wanted; weights where a mean was."""
    assert METHODS["cv-dd"].votes.of(committee, pool, 0) is None
    weights = Voting("prior").of(committee, pool, 0)
    assert weights is not None
    assert sum(weights) == pytest.approx(1)
    views = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    alone = [committee_logits([one], views, [8]) for one in committee]
    voted = committee_logits(committee, views, [8], [0.75, 0.25])
    torch.testing.assert_close(voted, 0.75 * alone[0] + 0.25 * alone[1])


def test_the_pixels_move_with_every_voter(pool: Pool) -> None:
    """One voter's gradient lost: with another second teacher the images would be the same."""
    recipe = replace(
        METHODS["cv-dd"], schedule=replace(METHODS["cv-dd"].schedule, steps=3, connections=0)
    )
    one, two, three = three_teachers()
    first, other = (
        recover(recipe, pair, pool, range(CLASSES), Settings(1)).images
        for pair in ([one, two], [one, three])
    )
    assert not torch.equal(first, other)
