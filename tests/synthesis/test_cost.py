"""What a plan counts of a method is what the method does: every image through every network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.bilevel import Bilevel
from reta.synthesis.cost import Extent, Looking
from reta.synthesis.diffusion import Denoiser
from reta.synthesis.engine import Settings, Work
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from reta.synthesis.recipe import Recipe
from small_world import CLASSES, PER_CLASS, SIZE, small

LOOKING = ["rded", "cv-dd", "g-vbsm", "edc", "wmdd", "nrr-dd"]
ENGINES = [name for name, recipe in METHODS.items() if recipe.engine]


def extent(recipe: Recipe, committee: list[Classifier], ipc: int) -> Extent:
    teachers = len(committee) if recipe.committee == "all" else 1
    return Extent(CLASSES, ipc, CLASSES * PER_CLASS, PER_CLASS, teachers, SIZE)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the images that teachers are asked about, rewritten ones too."""
    seen: list[int] = []
    features = Classifier.features

    def noted(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return features(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "features", noted)
        yield seen


@pytest.mark.parametrize("name", LOOKING)
def test_looks_before_the_first_step_are_counted(
    name: str, committee: list[Classifier], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a plan leaves out a pass over real images that takes longer than all steps."""
    recipe, ipc = METHODS[name], 2
    found = []
    for steps in (2, 4):  # each teacher once, and twice: what is left is before the first step
        one = recipe
        if recipe.schedule:
            one = replace(recipe, schedule=replace(recipe.schedule, steps=steps, connections=0))
        with counted(monkeypatch) as seen:
            one_by_one = Settings(ipc, images_per_pass=CLASSES)
            recover(one, committee, pool, range(CLASSES), one_by_one)
        found.append(sum(seen))
    size = extent(recipe, committee, ipc)
    parts = (recipe.start, recipe.objective, recipe.preserve)
    planned = sum(part.looks(size).total for part in parts if isinstance(part, Looking))
    assert planned == 2 * found[0] - found[1] > 0


def test_methods_that_do_not_look_plan_no_looks() -> None:
    """Breaks when a look is added to a method, and no plan knows of it."""
    size = Extent(CLASSES, 2, CLASSES * PER_CLASS, PER_CLASS, 2, SIZE)
    for name, recipe in METHODS.items():
        parts = (recipe.start, recipe.objective, recipe.preserve)
        looks = [part.looks(size).total for part in parts if isinstance(part, Looking)]
        assert bool(sum(looks)) is (name in LOOKING), name


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("ipc", [1, 3])
def test_passes_of_engines_are_counted(
    name: str,
    ipc: int,
    committee: list[Classifier],
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when a plan leaves out experts, lessons or samples, or counts too many."""
    pytest.importorskip("diffusers")
    recipe = METHODS[name]
    assert recipe.engine is not None
    settings: dict[str, Any] = {"matches": 2} if hasattr(recipe.engine, "matches") else {}
    engine = small(recipe.engine, **settings)
    seen = {"laid": 0, "block": 0}
    now = "laid"

    def note(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[now] += len(inputs[0])

    make, noise = Bilevel.network, Denoiser.noise

    def network(self: Bilevel, work: Work, *key: int | str) -> Classifier:
        made = make(self, work, *key)
        first = next(part for part in made.modules() if isinstance(part, nn.Conv2d))
        first.register_forward_pre_hook(note)
        return made

    def asked(self: Denoiser, latents: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        seen[now] += len(latents)
        return noise(self, latents, *given)

    monkeypatch.setattr(Bilevel, "network", network)
    monkeypatch.setattr(Denoiser, "noise", asked)
    work = Work(committee, pool, range(CLASSES), Settings(ipc), recipe.start)
    laid = [engine.lay(index, work) for index in range(engine.groundwork)]
    now = "block"
    own = replace(recipe, engine=engine)
    recover(own, committee, pool, range(CLASSES), Settings(ipc), laid=laid)
    costs = engine.costs(extent(recipe, committee, ipc))
    assert sum(part.total for part in costs.unit) * engine.groundwork == seen["laid"]
    assert sum(part.total for part in costs.block) == seen["block"] > 0
    rehearsed = engine.rehearsal(CLASSES, SIZE)
    assert rehearsed is not None
    assert rehearsed(torch.rand(2, 3, SIZE, SIZE)).shape[0] == 2
