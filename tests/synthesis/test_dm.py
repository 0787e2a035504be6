"""Distribution matching: the objective against plain loops, and what it is for."""

from __future__ import annotations

import numpy as np
import torch

from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.bilevel import Canvas
from reta.synthesis.dm import DistributionMatching, mean_gap
from reta.synthesis.engine import Settings, Work
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from reta.synthesis.recipe import Recipe
from small_world import CLASSES


def test_the_gap_is_the_distance_of_means() -> None:
    """Breaks when the objective is not that of the paper; compared with plain loops."""
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(7, 5)), rng.normal(size=(3, 5))
    expected = 0.0
    for column in range(5):
        gap = sum(real[:, column]) / 7 - sum(synthetic[:, column]) / 3
        expected += gap * gap
    found = mean_gap(torch.from_numpy(real), torch.from_numpy(synthetic))
    assert np.isclose(float(found), expected)


def test_the_loss_is_a_sum_of_classes(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when real images of one class are compared with synthetic ones of another."""
    engine = DistributionMatching(width=8, batch=100, crop=None)
    work = Work(committee, pool, [2, 0], Settings(3), METHODS["dm"].start)
    network = engine.network(work, "test").requires_grad_(False)
    canvas = Canvas(work, 1.0, 0.5)
    images = canvas.images(canvas.pixels.detach())
    found = engine.loss(work, network, images, 0, range(2))
    expected = 0.0
    for position, label in enumerate([2, 0]):
        members = [i for i in range(len(pool.labels)) if int(pool.labels[i]) == label]
        each = [network.features(pool.pixels(torch.tensor([i]))).numpy()[0] for i in members]
        own = [network.features(image[None]).numpy()[0] for image in images[position]]
        expected += float(((np.mean(each, 0) - np.mean(own, 0)) ** 2).sum())
    assert np.isclose(float(found), expected, rtol=1e-4)


def test_the_gap_closes(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when steps lead nowhere: to networks never seen, too, images come nearer the mean."""
    engine = DistributionMatching(steps=100, width=16, batch=9, learning_rate=0.2, crop=None)
    recipe = Recipe("", "", METHODS["dm"].start, engine=engine)
    result = recover(recipe, committee, pool, range(CLASSES), Settings(1))
    work = Work(committee, pool, range(CLASSES), Settings(1), recipe.start)
    unseen = [engine.network(work, "unseen", one).requires_grad_(False) for one in range(5)]
    gaps = [
        sum(float(engine.loss(work, network, images, 0, range(CLASSES))) for network in unseen)
        for images in (result.frames[0].float() / 255, result.images.float() / 255)
    ]
    assert gaps[1] < 0.8 * gaps[0]


def test_packing_changes_nothing(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when images that share a pass get another gradient; up to rounding."""
    recipe = Recipe("", "", METHODS["dm"].start, engine=DistributionMatching(3, 1.0, 0.5, 6, 8))
    results = [
        recover(recipe, committee, pool, range(CLASSES), Settings(2, images_per_pass=at_once))
        for at_once in (2, 100)
    ]
    difference = results[0].images.int() - results[1].images.int()
    assert difference.abs().max() <= 1


def test_blocks_are_independent(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when what a class becomes depends on the classes of its block."""
    recipe = Recipe("", "", METHODS["dm"].start, engine=DistributionMatching(2, 1.0, 0.5, 6, 8))
    whole = recover(recipe, committee, pool, [0, 1], Settings(2)).images
    alone = recover(recipe, committee, pool, [1], Settings(2)).images
    assert (whole[1].int() - alone[0].int()).abs().max() <= 1
