"""Orders of real images that stand for a class."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from reta.data.images import DecodedImages
from reta.models import Classifier
from reta.synthesis import coreset
from reta.synthesis.coreset import center_order, herding_order, medoid_order
from reta.synthesis.pool import Pool
from reta.synthesis.start import LargestErrors
from small_world import CLASSES, PER_CLASS, SIZE


def unit(pool: Pool, indices: torch.Tensor) -> np.ndarray:
    features = pool.features[indices].double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def same_images(count: int) -> Pool:
    pixels = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    images = DecodedImages(pixels, torch.zeros(count, dtype=torch.int64), ("only",))
    return Pool(images, torch.ones(count, 5), torch.ones(count), grey=True)


COVERING = (herding_order, center_order, medoid_order)


def test_orders_hold_every_image_of_the_class_once(pool: Pool) -> None:
    """An image chosen twice, or one of another class."""
    for order in COVERING:
        for label in range(CLASSES):
            chosen = order(pool, label, 0)
            assert sorted(chosen.tolist()) == pool.members(label).tolist()


def test_identical_images_are_each_taken_once() -> None:
    """Ties: where all distances are 0, a chosen image must not win again."""
    for order in COVERING:
        assert sorted(order(same_images(4), 0, 0).tolist()) == [0, 1, 2, 3]


def test_herding_takes_the_image_that_brings_the_mean_nearest(pool: Pool) -> None:
    """Each step against every other choice in numpy; features not scaled, or a mean of the rest."""
    for label in range(CLASSES):
        members = pool.members(label)
        features = dict(zip(members.tolist(), unit(pool, members), strict=True))
        wanted = np.mean(list(features.values()), axis=0)
        chosen = herding_order(pool, label, 0).tolist()
        for count in range(len(chosen)):
            distances = {
                other: np.linalg.norm(
                    wanted - np.mean([features[i] for i in [*chosen[:count], other]], axis=0)
                )
                for other in features
                if other not in chosen[:count]
            }
            assert distances[chosen[count]] <= min(distances.values()) + 1e-12


def test_greedy_centres_cover_the_class_within_twice_the_best(pool: Pool) -> None:
    """The known bound of the greedy algorithm, against the best of all choices of 3 centres."""
    members = pool.members(0)
    features = unit(pool, members)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    position = {index: place for place, index in enumerate(members.tolist())}

    def radius(centres: tuple[int, ...]) -> float:
        return float(distances[:, list(centres)].min(axis=1).max())

    greedy = tuple(position[index] for index in center_order(pool, 0, 0)[:3].tolist())
    best = min(radius(centres) for centres in itertools.combinations(range(PER_CLASS), 3))
    assert radius(greedy) <= 2 * best + 1e-12


def test_each_next_centre_is_the_farthest_from_those_before(pool: Pool) -> None:
    """The nearest instead of the farthest, or distances to the last centre only."""
    order = center_order(pool, 1, 0)
    features = unit(pool, order)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    for count in range(1, PER_CLASS):
        gap = distances[count:, :count].min(axis=1)
        assert gap[0] >= gap.max() - 1e-12


def test_each_next_medoid_lowers_the_mean_distance_most(pool: Pool) -> None:
    """Each step against every other choice in numpy; squared distances, or features not scaled."""
    members = pool.members(1)
    features = unit(pool, members)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    position = {index: place for place, index in enumerate(members.tolist())}
    order = [position[index] for index in medoid_order(pool, 1, 0).tolist()]
    for count in range(PER_CLASS):
        costs = {
            other: distances[:, [*order[:count], other]].min(axis=1).mean()
            for other in range(PER_CLASS)
            if other not in order[:count]
        }
        assert costs[order[count]] <= min(costs.values()) + 1e-12


def test_medoids_beyond_the_greedy_ones_follow_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chosen image among the rest, or a rest that is not ordered by what it would lower."""
    members = pool.members(2)
    features = unit(pool, members)
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    monkeypatch.setattr(coreset, "GREEDY", 3)
    position = {index: place for place, index in enumerate(members.tolist())}
    fresh = replace(pool)  # which has no order yet
    order = [position[index] for index in medoid_order(fresh, 2, 0).tolist()]
    assert sorted(order) == list(range(PER_CLASS))
    costs = [distances[:, [*order[:3], other]].min(axis=1).mean() for other in order[3:]]
    assert costs == sorted(costs)


def test_el2n_keeps_what_the_teacher_is_most_wrong_about(
    pool: Pool, committee: list[Classifier]
) -> None:
    """‖softmax − one-hot‖₂ in numpy, from the images themselves; the smallest for the largest."""
    chosen = LargestErrors()(pool, committee[0], [2], 4, 0).anchors
    assert chosen is not None
    members = pool.members(2)
    logits = committee[0](pool.pixels(members)).detach().double().numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = powers / powers.sum(axis=1, keepdims=True) - np.eye(CLASSES)[2]
    scores = dict(zip(members.tolist(), np.linalg.norm(errors, axis=1), strict=True))
    assert chosen[:, 0].tolist() == sorted(scores, key=lambda i: -scores[i])[:4]
