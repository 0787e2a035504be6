"""What bilevel methods share: keyed steps that resume, one view for real and synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from reta import interruption
from reta.checkpoint import Checkpoint
from reta.errors import DivergedError, Interrupted, UsageError
from reta.interruption import request_stop
from reta.methods import METHODS
from reta.models import Classifier, build, instance_convnet
from reta.storage import RunFolder
from reta.synthesis.bilevel import Canvas
from reta.synthesis.dm import DistributionMatching
from reta.synthesis.engine import Recovered, Settings, Work
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from reta.synthesis.recipe import Recipe
from small_world import CLASSES, SIZE, small

LEARNED = [name for name, recipe in METHODS.items() if recipe.engine]


@pytest.fixture(autouse=True)
def _no_stop_is_left() -> Iterator[None]:
    yield
    interruption._State.reason = None


@pytest.fixture
def work(committee: list[Classifier], pool: Pool) -> Work:
    return Work(committee, pool, range(CLASSES), Settings(2), METHODS["dm"].start)


def quick(name: str, **settings: object) -> Recipe:
    engine = METHODS[name].engine
    assert engine is not None
    return replace(METHODS[name], engine=small(engine, **settings))


def same(one: Recovered, other: Recovered) -> bool:
    pairs = [*zip(one.frames, other.frames, strict=True)]
    return one.steps == other.steps and all(torch.equal(a, b) for a, b in pairs)


def interrupting(stop: int) -> Callable[[], None]:
    """Return a check between steps that a signal reaches at a given call."""
    checks = []

    def check() -> None:
        checks.append(1)
        if len(checks) == stop:
            request_stop(Interrupted(15))
        if interruption._State.reason is not None:
            raise interruption._State.reason

    return check


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_engine_resumes_to_the_same_bytes(
    name: str, stop: int, tmp_path, committee: list[Classifier], pool: Pool, monkeypatch
) -> None:
    """Breaks when anything that decides a later step is missing from the kept state."""
    recipe, settings = quick(name, steps=6), Settings(2)
    whole = recover(recipe, committee, pool, range(CLASSES), settings)
    unit = RunFolder(tmp_path).unit("work", {"seed": 1})
    engine = recipe.engine
    assert engine is not None
    work = Work(committee, pool, range(CLASSES), settings, recipe.start)
    laid = [engine.lay(index, work) for index in range(engine.groundwork)]
    monkeypatch.setattr(interruption, "check", interrupting(stop))
    with pytest.raises(Interrupted):
        recover(recipe, committee, pool, range(CLASSES), settings, Checkpoint(unit), laid)
    monkeypatch.undo()
    interruption._State.reason = None
    assert unit.kept() is not None
    again = recover(recipe, committee, pool, range(CLASSES), settings, Checkpoint(unit), laid)
    assert same(whole, again)


@pytest.mark.parametrize(("name", "longer"), [("mtt", "last_start"), ("cao2", "training")])
@pytest.mark.parametrize("stop", [2, 3])
def test_groundwork_resumes_to_the_same_bytes(
    name: str, longer: str, stop: int, tmp_path, work: Work, monkeypatch
) -> None:
    """Breaks when an expert or a diffusion model that was interrupted becomes another one."""
    engine = quick(name, **{longer: 5}).engine
    assert engine is not None
    whole = engine.lay(0, work)
    unit = RunFolder(tmp_path).unit("work", {"seed": 1})
    monkeypatch.setattr(interruption, "check", interrupting(stop))
    with pytest.raises(Interrupted):
        engine.lay(0, replace(work, checkpoint=Checkpoint(unit)))
    monkeypatch.undo()
    interruption._State.reason = None
    assert unit.kept() is not None
    again = engine.lay(0, replace(work, checkpoint=Checkpoint(unit)))
    assert set(again) == set(whole)
    assert all(torch.equal(again[part], whole[part]) for part in whole)


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "cao2"])
def test_a_diverging_engine_says_so(name: str, committee: list[Classifier], pool: Pool) -> None:
    """Breaks when NaN gets into the images instead of beginning the unit anew, more carefully."""
    broken = build("convnet3", CLASSES, SIZE, std=(1e-30, 1e-30, 1e-30))
    with pytest.raises(DivergedError):
        recover(quick(name), [broken], pool, range(CLASSES), Settings(1))


def test_caution_lowers_the_rate(work: Work) -> None:
    """Breaks when a unit that diverged is begun anew at the rate at which it diverged."""
    careful = Checkpoint()
    careful.failures = ["once"]
    moved = []
    for checkpoint in (Checkpoint(), careful):
        canvas = Canvas(replace(work, checkpoint=checkpoint), 1.0, 0.5)
        before = canvas.pixels.detach().clone()
        canvas.descend(torch.full_like(canvas.pixels, 1e-3))
        moved.append((canvas.pixels.detach() - before).abs().max())
    assert torch.isclose(moved[1], moved[0] / 2, rtol=1e-3)


def test_real_and_synthetic_images_share_a_view(work: Work) -> None:
    """Breaks when the augmentation moves real images otherwise than synthetic ones."""
    engine = DistributionMatching()
    images = work.pool.pixels(torch.arange(4))
    one, other = engine.augmented(work, 3, 1, images[:1], images)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[0], images[0])
    (plain,) = replace(engine, crop=None).augmented(work, 3, 1, images)
    assert torch.equal(plain, images)
    (again,) = engine.augmented(work, 4, 1, images[:1])
    assert not torch.equal(one, again)


def test_the_network_is_dataset_condensations() -> None:
    """Breaks when the ConvNet is not the one that published numbers were measured on."""
    model = instance_convnet(10, 32)
    assert sum(weight.numel() for weight in model.parameters()) == 320_010
    assert model.feature_dim == 2048
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    each = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(model(images), each, atol=1e-6)  # no image knows of another
    assert instance_convnet(10, 64).feature_dim == 2048
    named = build("convnet3_in", 10, 32, seed=0)
    assert [w.shape for w in named.parameters()] == [w.shape for w in model.parameters()]


def test_effort_scales_an_engine() -> None:
    """Breaks when `--effort small` costs what the paper's settings cost."""
    engine = DistributionMatching()
    assert engine.scaled(1.0) == engine
    less = engine.scaled(0.02)
    assert (less.steps, less.width, less.batch) == (400, 32, 64)


def test_settings_that_mean_nothing_are_refused() -> None:
    """Breaks when a budget of nothing runs, and leaves images that nothing was done to."""
    with pytest.raises(UsageError, match=r"engine\.steps is 0"):
        DistributionMatching(steps=0)


@dataclass(frozen=True)
class Still(DistributionMatching):
    """Does nothing, to see what is kept of a way."""

    def recover(self, work: Work) -> Recovered:
        return Canvas(work, 1.0, 0.5).learn(self.steps, lambda index: {"loss": float(index)})


def test_a_way_is_kept_in_four_pictures_and_a_hundred_rows(work: Work) -> None:
    """Breaks when long runs fill the run folder, or short ones leave no history."""
    result = Still(steps=1000).recover(work)
    assert len(result.frames) == 5
    assert len(result.steps) == 101
    assert [row["step"] for row in result.steps[:3]] == [0, 10, 20]
    assert torch.equal(result.images, result.frames[0])
    assert result.anchors[0].shape == (CLASSES, 2)
    assert len(Still(steps=2).recover(work).frames) == 3
