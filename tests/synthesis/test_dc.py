"""Gradient matching: distance and gradients against plain loops; IDC's cells and lessons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.bilevel import Learner
from reta.synthesis.dc import GradientMatching, layer_distance, weight_gradients
from reta.synthesis.engine import Settings, Work
from reta.synthesis.idc import Collage, MultiFormation, cells
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from small_world import CLASSES, SIZE


@pytest.fixture
def work(double_committee: list[Classifier], double_pool: Pool) -> Work:
    return Work(double_committee, double_pool, range(CLASSES), Settings(2), METHODS["dc"].start)


def double(engine: GradientMatching, work: Work) -> Classifier:
    return engine.network(work, "test").double()


def test_the_distance_is_one_minus_the_cosine_of_each_output_unit() -> None:
    """Breaks when layers are compared as a whole, or units are mixed; compared with plain loops."""
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(4, 3, 2, 2)), rng.normal(size=(4, 3, 2, 2))
    expected = 0.0
    for unit in range(4):
        a, b = real[unit].ravel(), synthetic[unit].ravel()
        expected += 1 - sum(a * b) / np.sqrt(sum(a * a)) / np.sqrt(sum(b * b))
    found = layer_distance(torch.from_numpy(real), torch.from_numpy(synthetic))
    assert np.isclose(float(found), expected, atol=1e-5)
    assert float(layer_distance(torch.from_numpy(real), 3 * torch.from_numpy(real))) < 1e-5


def test_the_gradients_are_those_of_the_cross_entropy(work: Work) -> None:
    """Breaks when a gradient is not that of the loss; compared with finite differences."""
    network = double(GradientMatching(width=4), work)
    images = work.pool.pixels(torch.arange(3)).double()
    found = weight_gradients(network, images, 1)
    number, weight = next(
        (number, weight) for number, weight in enumerate(network.parameters()) if weight.ndim == 4
    )
    step, place = 1e-6, (2, 1, 0, 2)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
            logits = network(images).numpy()
            weight[place] -= sign * step
        losses.append(np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 1]))
    assert np.isclose(float(found[number][place]), (losses[0] - losses[1]) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("name", ["dc", "idc"])
def test_the_pixels_get_the_gradient_of_the_distance(name: str, work: Work) -> None:
    """Breaks when the second derivative is lost, or biases and norms are matched too."""
    engine = METHODS[name].engine
    assert isinstance(engine, GradientMatching)
    engine = replace(engine, width=4, batch=5)
    network = double(engine, work)
    images = work.pool.pixels(torch.arange(2)).double()
    loss, gradient = engine.class_loss(work, network, images, 0, 1)
    real, synthetic = engine.augmented(
        work, 0, 1, engine.real(work, 0, 1).double(), engine.decode(images)
    )
    sides = []
    for group in (real, synthetic):
        error = F.cross_entropy(network(group), torch.ones(len(group), dtype=torch.int64))
        named = dict(network.named_parameters())
        gradients = torch.autograd.grad(error, list(named.values()))
        sides.append({key: value.numpy() for key, value in zip(named, gradients, strict=True)})
    expected = 0.0
    for key, wanted in sides[0].items():
        found = sides[1][key]
        if name == "idc" and wanted.ndim == 4:
            expected += ((wanted - found) ** 2).sum()
        if name == "dc" and wanted.ndim > 1:
            for a, b in zip(wanted, found, strict=True):
                cosine = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6)
                expected += 1 - cosine
    assert np.isclose(float(loss), expected, rtol=1e-6)
    step, place = 1e-5, (0, 1, 7, 8)
    ends = []
    for sign in (1, -1):
        moved = images.clone()
        moved[place] += sign * step
        ends.append(float(engine.class_loss(work, network, moved, 0, 1)[0]))
    assert np.isclose(float(gradient[place]), (ends[0] - ends[1]) / (2 * step), rtol=1e-3)


@pytest.mark.parametrize(("name", "rate"), [("dc", 0.1), ("idc", 0.05)])
def test_the_distance_falls(
    name: str, rate: float, committee: list[Classifier], pool: Pool
) -> None:
    """Breaks when steps lead nowhere: at weights of a network never seen, gradients come nearer."""
    engine = METHODS[name].engine
    assert isinstance(engine, GradientMatching)
    engine = replace(engine, width=16, batch=9, crop=None, learning_rate=rate, matches=1, steps=60)
    recipe = replace(METHODS[name], engine=engine)
    result = recover(recipe, committee, pool, range(CLASSES), Settings(1))
    work = Work(committee, pool, range(CLASSES), Settings(1), recipe.start)
    unseen = [engine.network(work, "unseen", one) for one in range(3)]
    losses = [
        sum(
            float(engine.class_loss(work, network, images[label], 0, label)[0])
            for network in unseen
            for label in range(CLASSES)
        )
        for images in (result.frames[0].float() / 255, result.images.float() / 255)
    ]
    assert losses[1] < losses[0]


def test_cells_are_enlarged_quarters() -> None:
    """Breaks when the parts of a grid are mixed up; compared with slices, one by one."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = cells(images, 2).view(2, 2, 2, 3, 16, 16)
    for row in range(2):
        for column in range(2):
            part = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            large = F.interpolate(part, size=16, mode="bilinear")
            assert torch.allclose(found[:, row, column], large)
    assert torch.equal(cells(images, 1), images)
    odd = cells(images, 3)
    assert odd.shape == (18, 3, 16, 16)
    assert torch.allclose(odd[8, :, -3:, -3:], torch.full((3, 3, 3), 0.5))  # grey fills it up


def test_a_collage_holds_small_real_images(pool: Pool, committee: list[Classifier]) -> None:
    """Breaks when a collage shows images of another class, or one of them twice."""
    collage = Collage(2)(pool, committee[0], [3, 1], 2, 0).images
    assert collage.shape == (2, 2, 3, SIZE, SIZE)
    for column, label in enumerate([3, 1]):
        real = F.avg_pool2d(pool.pixels(pool.members(label)), 2)
        small = F.avg_pool2d(cells(collage[:, column], 2), 2)
        nearest = torch.cdist(small.flatten(1), real.flatten(1)).argmin(1)
        assert len(nearest.unique()) == 8
    assert Collage(3)(pool, committee[0], [0], 1, 0).images.shape == (1, 1, 3, SIZE, SIZE)


def test_matches_and_lessons_follow_the_images_per_class(
    committee: list[Classifier], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when networks are trained between matches otherwise than the authors' table says."""
    learned: list[int] = []
    monkeypatch.setattr(Learner, "descend", lambda self, *_: learned.append(1))
    for ipc, matches, lessons in ((1, 1, 500), (10, 10, 50)):
        learned.clear()
        recipe = replace(METHODS["dc"], engine=GradientMatching(steps=1, width=2, batch=100))
        result = recover(recipe, committee, pool, [0, 1], Settings(ipc))
        assert len(result.steps) == matches
        assert len(learned) == (matches - 1) * lessons


def test_idc_learns_from_real_images(
    committee: list[Classifier], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when IDC's networks are trained on synthetic images, or for too long."""
    learned: list[int] = []
    monkeypatch.setattr(Learner, "descend", lambda self, *_: learned.append(1))
    engine = MultiFormation(steps=1, width=2, batch=4, matches=3, lesson=12, lesson_batch=4)
    work = Work(committee, pool, [0, 1], Settings(1), METHODS["idc"].start)
    asked: list[int] = []
    pixels = Pool.pixels
    monkeypatch.setattr(Pool, "pixels", lambda self, at: asked.append(len(at)) or pixels(self, at))
    engine.teach(work, engine.canvas(work), engine.learner(work, 0), 0)
    assert len(learned) == 3
    assert asked[-3:] == [4, 4, 4]
    with pytest.raises(UsageError, match=r"engine\.factor"):
        MultiFormation(factor=0)
