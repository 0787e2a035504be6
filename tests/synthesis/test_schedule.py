"""Blocks, resolutions and the cosine, against FADRM's published numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reta.errors import UsageError
from reta.synthesis.schedule import Schedule


def test_defaults_are_those_of_fadrm() -> None:
    """B = 2000 in four blocks of 500 with Adam's (0.5, 0.9)."""
    schedule = Schedule()
    assert [block.steps for block in schedule.blocks(32)] == [500, 500, 500, 500]
    assert schedule.betas == (0.5, 0.9)


@pytest.mark.parametrize(
    ("size", "connections", "sizes"),
    [
        (224, 3, [200, 224, 200, 224]),
        (224, 2, [224, 200, 224]),
        (224, 0, [224]),
        (64, 3, [64] * 4),
        (32, 3, [32] * 4),
        (128, 1, [114, 128]),
    ],
)
def test_resolutions_alternate_above_64_px(size: int, connections: int, sizes: list[int]) -> None:
    """A last block below full size, or small images shrunk further."""
    blocks = Schedule(steps=40, connections=connections).blocks(size)
    assert [block.size for block in blocks] == sizes


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.25), (500, 0.213), (1000, 0.125), (1500, 0.0366), (2000, 0.0)]
)
def test_one_cosine_over_all_steps(step: int, rate: float) -> None:
    """A cosine that begins anew in each block, or that counts from another end."""
    assert Schedule(steps=2000).rate(step) == pytest.approx(rate, abs=4e-4)


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 5000), connections=st.integers(0, 9))
def test_blocks_spend_the_budget(steps: int, connections: int) -> None:
    """Steps lost to rounding, a block without steps, or the rest given to another than the last."""
    if steps <= connections:
        with pytest.raises(UsageError, match="steps"):
            Schedule(steps=steps, connections=connections)
        return
    lengths = [block.steps for block in Schedule(steps, connections).blocks(32)]
    assert len(lengths) == connections + 1
    assert sum(lengths) == steps
    assert set(lengths[:-1]) <= {steps // (connections + 1)}
    assert min(lengths) >= 1
    assert lengths[-1] == max(lengths)


def test_negative_connections_are_refused() -> None:
    """An empty list of blocks would end in images nobody optimised."""
    with pytest.raises(UsageError):
        Schedule(steps=10, connections=-1)
