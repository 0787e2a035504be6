"""DELT: who joins when, and a plain loop beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from reta.errors import UsageError
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.delt import EarlyLate
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.matching import Matching
from reta.synthesis.pool import Pool
from test_loop import augmented, loss_of


def joins(ipc: int, steps: int, rounds: int) -> list[int]:
    """The step from which each image is optimised, as the authors' code deals them out."""
    counts = [ipc // rounds + (1 if index < ipc % rounds else 0) for index in range(rounds)]
    result = []
    for index, count in enumerate(counts):
        result += [index * (steps // rounds)] * count
    return result


@pytest.mark.parametrize(
    ("ipc", "steps", "rounds"), [(10, 4000, 8), (50, 4000, 8), (3, 80, 8), (1, 16, 4), (7, 21, 3)]
)
def test_images_join_round_after_round(ipc: int, steps: int, rounds: int) -> None:
    """An image too early or too late, or one that leaves again."""
    schedule = EarlyLate(steps, 0, rounds=rounds)
    for step in range(steps):
        expected = sum(start <= step for start in joins(ipc, steps, rounds))
        assert schedule.active(step, ipc) == expected


def test_few_steps_and_wrong_rounds() -> None:
    """Effort smoke has fewer steps than rounds; no rounds are a mistake."""
    assert [EarlyLate(3, 0).active(step, 5) for step in range(3)] == [2, 4, 5]
    with pytest.raises(UsageError, match="rounds"):
        EarlyLate(10, 0, rounds=0)


def test_a_plain_loop_agrees(double_committee: list[Classifier], double_pool: Pool) -> None:
    """Adam over all images with gradients for those that joined; one crop for the batch."""
    recipe = replace(METHODS["delt"], schedule=EarlyLate(6, 0, rounds=3))
    made = Recovery(recipe, double_committee, double_pool, [1, 3], Settings(3, seed=2))
    (block,) = recipe.schedule.blocks(16)
    views = made._draw_views(block, 0)
    teacher = double_committee[0]
    mean, std = teacher.mean, teacher.std
    # Class after class, as files lie in folders.
    start = (made.canvas.pixels.detach() * made.canvas.unit).transpose(0, 1).flatten(0, 1)
    labels = torch.tensor([1, 1, 1, 3, 3, 3])
    x = ((start - mean) / std).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
    for step in range(6):
        chosen = [image for image in range(6) if image % 3 <= step // 2]
        adam.param_groups[0]["lr"] = 0.25 * 0.5 * (1 + math.cos(math.pi * step / 6))
        adam.zero_grad()
        shown = augmented(x[chosen], views[step], 0, 16)
        loss_of(teacher, shown, labels[chosen]).backward()
        adam.step()
        with torch.no_grad():
            x.copy_(torch.max(torch.min(x, (1 - mean) / std), -mean / std))
    made.run()
    final = (made.canvas.pixels.detach() * made.canvas.unit).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(final, x.detach() * std + mean, rtol=0, atol=1e-4)
    assert (final - start)[2].abs().mean() > 0.001  # the last one joined, too


def test_crops_begin_whole_and_shrink() -> None:
    """The curriculum: from 1 to 0.08 along a cosine; without it always 0.08."""
    easy = Matching(easy_first=True)
    least = [easy.smallest_crop(step, 100) for step in range(101)]
    assert (least[0], least[50]) == pytest.approx((1.0, 0.54))
    assert least[100] == pytest.approx(0.08)
    assert least == sorted(least, reverse=True)
    assert Matching().smallest_crop(0, 100) == 0.08
