"""Continual learning: its measures by hand, and what a learner may and may not know."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from reta.errors import UsageError
from reta.evaluation.continual import Continual, forgetting, stages_of
from reta.evaluation.learners import Examples, learn, recognised
from reta.models import build
from reta.training import Protocol


def test_forgetting_by_hand():
    """Breaks when the last stage counts, or the best is sought among accuracies after the end."""
    matrix = [
        [0.9],
        [0.6, 0.8],
        [0.5, 0.7, 1.0],
    ]
    # Stage 0: best before the end 0.9, now 0.5; stage 1: 0.8, now 0.7; the last cannot be lost.
    assert forgetting(matrix) == pytest.approx((0.4 + 0.1) / 2)
    assert forgetting([[0.5], [0.7, 1.0]]) == pytest.approx(-0.2)  # learning on helped
    assert forgetting([[0.5]]) == 0


def test_stages_hold_every_class_once():
    """Breaks when a class is in two stages or none, or all orders are the same."""
    for classes, steps in ((10, 5), (7, 3), (4, 4)):
        stages = stages_of(classes, steps, 1)
        assert sorted(label for stage in stages for label in stage) == list(range(classes))
        assert {len(stage) for stage in stages} <= {classes // steps, classes // steps + 1}
    assert stages_of(10, 5, 0) != stages_of(10, 5, 1)
    assert stages_of(10, 5, 2) == stages_of(10, 5, 2)


def shades(labels: list[int], count: int) -> Examples:
    """Images of one shade per class, with noise."""
    generator = torch.Generator().manual_seed(0)
    every = torch.tensor(labels).repeat_interleave(count)
    noise = torch.randint(0, 30, (len(every), 3, 16, 16), generator=generator)
    return Examples((every[:, None, None, None] * 60 + noise).to(torch.uint8), every)


def test_replay_keeps_what_training_on_new_classes_alone_forgets():
    """Breaks when memory is not shown, or classes not seen yet take part in a decision."""
    test, seen = shades([0, 1, 2, 3], 8), torch.tensor([True, True, False, False])

    def after_two_stages(memory: Examples | None) -> float:
        model = build("convnet3", 4, 16)
        protocol = Protocol(6, 3e-3)
        learn(model, shades([0, 1], 12), protocol, seed=0, flip=False, seen=seen)
        first = recognised(model, test.only(torch.tensor([0, 1])), seen)
        assert first.float().mean() > 0.9
        everything = torch.ones(4, dtype=torch.bool)
        new = shades([2, 3], 12)
        learn(model, new, protocol, seed=1, flip=False, seen=everything, memory=memory)
        return float(recognised(model, test, everything)[:16].float().mean())

    assert after_two_stages(None) < 0.5 < after_two_stages(shades([0, 1], 2))


def test_only_classes_seen_so_far_are_answered():
    """Breaks when a class that was never shown is predicted."""
    model = build("convnet3", 4, 16)
    examples = shades([3], 8)
    assert not recognised(model, examples, torch.tensor([True, True, True, False])).any()
    assert recognised(model, examples, torch.tensor([False, False, False, True])).all()


class Fixed:
    """A subject whose images say which class and place they are."""

    classes, ipc = tuple("abcdef"), 4
    source = SimpleNamespace(image_size=2)

    def resized(self, ipc: int) -> torch.Tensor:
        """Classes in tens, places in units."""
        codes = 10 * torch.arange(6)[:, None] + torch.arange(ipc)
        return codes[:, :, None, None, None].expand(6, ipc, 3, 2, 2).to(torch.uint8)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("fixed", [[0, 1, 20, 21], [0, 1, 20, 21, 40, 41, 50, 51]]), ("shrinking", None)],
)
def test_what_a_memory_holds_after_each_stage(quota, expected):
    """Breaks when a class takes another's place, or a shrinking memory is not full."""
    evaluation = Continual(steps=2, quota=quota, sets="per-size")
    stages = [[0, 2], [4, 5]]
    for number in (1, 2):
        memory = evaluation._filled(Fixed(), "own", stages[:number], 12, 0)
        held = memory.pixels[:, 0, 0, 0].tolist()
        assert [code // 10 for code in held] == memory.labels.tolist()
        if expected:
            assert held == expected[number - 1]
        else:
            assert len(held) == 12
            assert held == sorted(held)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "at least 2"),
        ({"orders": 0}, "at least 1"),
        ({"references": ("own",)}, "the run itself"),
        ({"sizes": (0, 10)}, "at least 1 image"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    """Breaks when they are only met after the first stage was learned."""
    with pytest.raises(UsageError, match=message):
        Continual(**settings)
