"""What synthetic images start from."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv

from reta.data.augment import random_views
from reta.data.images import DecodedImages
from reta.models import Classifier
from reta.progress import warn_once
from reta.runtime import random_generator
from reta.synthesis.pool import Pool
from reta.synthesis.start import Mosaic, Noise, RealImages, Start, random_order
from small_world import CLASSES, PER_CLASS, SIZE

STARTS = [
    RealImages("medium"),
    RealImages("random"),
    RealImages("typical"),
    RealImages("herding"),
    RealImages("k-center"),
    RealImages("k-medoids"),
    Noise(),
    Mosaic(),
    Mosaic(factor=2),
    Mosaic(factor=3, candidates=4, crops=2),
]


@pytest.mark.parametrize("start", STARTS, ids=repr)
@pytest.mark.parametrize("ipc", [1, 4, PER_CLASS + 2])
def test_shapes_and_range(start: Start, ipc: int, pool: Pool, committee: list[Classifier]) -> None:
    """Axes exchanged, or pixels that are no pixels; fewer real images than asked for."""
    begin = start(pool, committee[0], [2, 0, 3], ipc, 0)
    assert begin.images.shape == (ipc, 3, 3, SIZE, SIZE)
    assert begin.images.dtype == torch.float32
    assert begin.images.min() >= 0
    assert begin.images.max() <= 1
    if isinstance(start, RealImages):
        assert begin.anchors is not None
        assert (pool.labels[begin.anchors] == torch.tensor([2, 0, 3])).all()
        assert torch.equal(begin.images, pool.images.pixels(begin.anchors).float() / 255)
    else:
        assert begin.anchors is None


@pytest.mark.parametrize("start", STARTS, ids=repr)
def test_a_class_starts_the_same_in_any_block(
    start: Start, pool: Pool, committee: list[Classifier]
) -> None:
    """Draws from a stream shared by the classes: bytes would depend on how blocks are cut."""
    together = start(pool, committee[0], range(CLASSES), 3, 7).images
    for label in range(CLASSES):
        alone = start(pool, committee[0], [label], 3, 7).images
        assert torch.equal(alone[:, 0], together[:, label])
    assert torch.equal(start(pool, committee[0], range(CLASSES), 3, 7).images, together)


@pytest.mark.parametrize("start", [RealImages("random"), Noise(), Mosaic()], ids=repr)
def test_another_seed_starts_elsewhere(
    start: Start, pool: Pool, committee: list[Classifier]
) -> None:
    """A seed that is not used would make five runs one run."""
    one, other = (start(pool, committee[0], [0, 1], 3, seed).images for seed in (0, 1))
    assert not torch.equal(one, other)


def test_medium_images_are_nearest_the_median(pool: Pool, committee: list[Classifier]) -> None:
    """The median of another class, or of the whole pool; the most or least certain first."""
    anchors = RealImages("medium")(pool, committee[0], range(CLASSES), PER_CLASS, 0).anchors
    for label in range(CLASSES):
        confidence = pool.confidence[pool.labels == label].numpy()
        distance = np.abs(pool.confidence[anchors[:, label]].numpy() - np.median(confidence))
        assert (np.diff(distance) >= 0).all()
        assert len(set(anchors[:, label].tolist())) == PER_CLASS


def test_typical_images_are_the_most_certain(pool: Pool, committee: list[Classifier]) -> None:
    """Sorted the wrong way round."""
    anchors = RealImages("typical")(pool, committee[0], range(CLASSES), PER_CLASS, 0).anchors
    for label in range(CLASSES):
        confidence = pool.confidence[anchors[:, label]]
        assert (confidence.diff() <= 0).all()
        assert confidence[0] == pool.confidence[pool.labels == label].max()


def test_confidence_is_the_probability_of_the_true_class(
    pool: Pool, committee: list[Classifier]
) -> None:
    """The probability of another class, of the winner, or features out of step with images."""
    for index in range(0, len(pool.labels), 5):
        image = pool.images.pixels(torch.tensor([index])).float() / 255
        row = committee[0](image).double().softmax(1)[0, pool.labels[index]]
        assert pool.confidence[index].item() == pytest.approx(row.item(), abs=1e-5)
        feature = committee[0].features(image)[0]
        torch.testing.assert_close(pool.features[index], feature, rtol=1e-4, atol=1e-5)


def test_images_repeat_in_turn_when_there_are_too_few(
    pool: Pool, committee: list[Classifier], caplog: pytest.LogCaptureFixture
) -> None:
    """One image repeated for all the rest, or nothing said about it."""
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "reta"):
        begin = RealImages("random")(pool, committee[0], [1, 3], 2 * PER_CLASS + 1, 0)
    for column in range(2):
        own = begin.anchors[:, column].tolist()
        assert len(set(own[:PER_CLASS])) == PER_CLASS
        assert own[PER_CLASS : 2 * PER_CLASS] == own[:PER_CLASS]
        assert own[-1] == own[0]
    assert [record.getMessage().split(" has")[0] for record in caplog.records] == [
        "class 1",
        "class 3",
    ]


def test_random_order_is_a_permutation_of_the_class(pool: Pool) -> None:
    """Images of another class, or one twice."""
    order = random_order(pool, 2, 0)
    assert sorted(order.tolist()) == pool.members(2).tolist()
    assert order.tolist() != pool.members(2).tolist()


def test_noise_has_the_mean_and_spread_of_the_data(pool: Pool, committee: list[Classifier]) -> None:
    """Noise around black, or with the channels' numbers exchanged."""
    noise = Noise()(pool, committee[0], range(CLASSES), 30, 0).images
    mean, std = committee[0].mean.flatten(), committee[0].std.flatten()
    drawn = noise.transpose(2, 0).flatten(1)  # by channel
    generator = torch.Generator().manual_seed(0)
    for channel in range(3):
        expected = (mean[channel] + std[channel] * torch.randn(50_000, generator=generator)).clamp(
            0, 1
        )
        assert drawn[channel].mean().item() == pytest.approx(expected.mean().item(), abs=0.006)
        assert drawn[channel].std().item() == pytest.approx(expected.std().item(), abs=0.006)
    assert not torch.equal(noise[0, 0], noise[1, 0])
    assert not torch.equal(noise[0, 0], noise[0, 1])


@pytest.mark.parametrize(("factor", "ipc"), [(1, 4), (2, 2), (3, 1)])
def test_mosaics_keep_the_crops_of_least_cross_entropy(
    factor: int, ipc: int, pool: Pool, committee: list[Classifier]
) -> None:
    """RDED again, crop by crop: the best of five of each image, the best images, row by row."""
    label, seed, side = 2, 3, SIZE // factor
    order = random_order(pool, label, seed)
    views = random_views(
        random_generator(seed, "mosaic", label), 5 * PER_CLASS, SIZE, ratio=(1, 1), flip=False
    )
    candidates = []
    for number, index in enumerate(order.tolist()):
        image, best = pool.images.pixels(torch.tensor(index)).float() / 255, None
        for box in views.boxes[5 * number : 5 * number + 5].tolist():
            crop = tv.resized_crop(image, *box, [side, side], antialias=True)
            before = (SIZE - side) // 2
            framed = torch.zeros(3, SIZE, SIZE)
            framed[:, before : before + side, before : before + side] = crop
            loss = F.cross_entropy(committee[0](framed[None]), torch.tensor([label])).item()
            if best is None or loss < best[0]:
                best = (loss, crop)
        candidates.append(best)
    candidates.sort(key=lambda pair: pair[0])
    mosaics = Mosaic(factor=factor)(pool, committee[0], [0, label], ipc, seed).images[:, 1]
    kept = iter(candidates)
    for mosaic in mosaics:
        for row in range(factor):
            for column in range(factor):
                place = mosaic[
                    :, row * side : (row + 1) * side, column * side : (column + 1) * side
                ]
                torch.testing.assert_close(place, next(kept)[1], rtol=0, atol=1e-5)


def test_mosaics_of_large_images_are_two_by_two(committee: list[Classifier], pool: Pool) -> None:
    """RDED uses single crops up to 64 px and four above."""
    every = pool.images.pixels(torch.arange(len(pool.labels)))
    images = every.repeat_interleave(5, 2).repeat_interleave(5, 3)  # 80 px
    large = replace(pool, images=DecodedImages(images, pool.labels, pool.images.classes))
    auto, two = (
        Mosaic(factor, candidates=4, crops=1)(large, committee[0], [0], 1, 0).images
        for factor in (None, 2)
    )
    assert torch.equal(auto, two)
    one = Mosaic(1)(pool, committee[0], [0], 2, 0).images
    assert torch.equal(Mosaic()(pool, committee[0], [0], 2, 0).images, one)
