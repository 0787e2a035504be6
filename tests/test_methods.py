"""The table of methods: every recipe runs, and ablations replace one field."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.connection import FixedAnchor
from reta.synthesis.loop import Settings, recover
from reta.synthesis.matching import Matching
from reta.synthesis.pool import Pool
from reta.synthesis.retrieval import RetrievedAnchor
from reta.synthesis.schedule import Schedule
from reta.synthesis.start import RealImages
from small_world import CLASSES, SIZE, small

TEXTS = {"summary", "source"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ipc", [1, 3])
def test_every_recipe_runs(name: str, ipc: int, committee: list[Classifier], pool: Pool) -> None:
    """A row of the table that fails at the first step, or whose images do not fit."""
    recipe = METHODS[name]
    if recipe.engine:
        recipe = replace(recipe, engine=small(recipe.engine))
    elif recipe.schedule:
        connections = min(recipe.schedule.connections, 1)
        recipe = replace(
            recipe, schedule=replace(recipe.schedule, steps=2, connections=connections)
        )
    result = recover(recipe, committee, pool, range(CLASSES), Settings(ipc))
    assert result.images.shape == (CLASSES, ipc, 3, SIZE, SIZE)
    assert result.images.dtype == torch.uint8
    assert len(result.steps) == (2 if recipe.steps else 0)
    assert len(result.connections) == (1 if recipe.connection else 0)
    assert ("topology" in str(result.steps)) is (recipe.topology is not None and ipc > 1)
    assert bool(recipe.steps) is not torch.equal(result.images, result.frames[0])


def differing(one: str, other: str) -> set[str]:
    first, second = METHODS[one], METHODS[other]
    every = {field.name for field in fields(first)}
    return {name for name in every if getattr(first, name) != getattr(second, name)} - TEXTS


@pytest.mark.parametrize(
    ("one", "other", "changed"),
    [
        ("fadrm+", "reta-drc", {"connection"}),
        ("fadrm+", "reta-pta", {"topology"}),
        ("reta-drc", "reta-paper", {"topology"}),
        ("reta-pta", "reta-paper", {"connection"}),
        ("fadrm", "fadrm+", {"committee"}),
    ],
)
def test_ablations_replace_one_field(one: str, other: str, changed: set[str]) -> None:
    """Table 3 means nothing if two things change at once."""
    assert differing(one, other) == changed


def test_recipes_are_those_of_the_papers() -> None:
    """Settings of the table that drifted from the specification."""
    fadrm_plus = METHODS["fadrm+"]
    assert fadrm_plus.start == RealImages("medium")
    assert fadrm_plus.schedule == Schedule(2000, 3, 0.25, (0.5, 0.9), 200 / 224)
    assert fadrm_plus.objective == Matching(0.01, 10.0, (0.08, 1.0))
    assert fadrm_plus.connection == FixedAnchor(0.5)
    assert (fadrm_plus.topology, fadrm_plus.committee) == (None, "all")
    assert METHODS["fadrm"].committee == METHODS["sre2l"].committee == "first"
    assert METHODS["sre2l"].schedule == Schedule(4000, 0)
    assert METHODS["reta-paper"].connection == RetrievedAnchor(0.5, 0.1, "argmin", "minmax", 1.0)
    assert METHODS["reta-paper"].topology == TopologyAlignment(weight=0.5)
    for name in ("random", "medium", "rded"):
        assert METHODS[name].schedule is None


def test_every_method_says_what_it_is_and_whose() -> None:
    """Reports print both."""
    assert all(recipe.summary and recipe.source for recipe in METHODS.values())
    assert len({recipe.summary for recipe in METHODS.values()}) == len(METHODS)
