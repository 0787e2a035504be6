"""Eq. 2, 3 and 6: resampling, blending and the fit gap."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.synthesis.connection import (
    FixedAnchor,
    Query,
    fit_gap,
    resample,
    residual_connection,
    share_at,
)
from reta.synthesis.pool import Pool


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_alpha_is_the_weight_of_the_synthetic_image() -> None:
    """α and 1 − α exchanged: at 0 only the anchor is left, at 1 only the image."""
    images, anchors = rand(4, 3, 6, 6), rand(4, 3, 6, 6, seed=1)
    assert torch.equal(residual_connection(images, anchors, 0.0), anchors)
    assert torch.equal(residual_connection(images, anchors, 1.0), images)
    half = residual_connection(images, anchors)
    torch.testing.assert_close(half, (images + anchors) / 2)
    quarter = residual_connection(images, anchors, 0.25)
    torch.testing.assert_close(quarter, images / 4 + anchors * 3 / 4)


def test_blending_is_linear_and_stays_in_range() -> None:
    """A blend that leaves [0, 1] would be clipped by the next step and lose the anchor."""
    images, anchors = rand(4, 3, 6, 6), rand(4, 3, 6, 6, seed=1)
    more = rand(4, 3, 6, 6, seed=2)
    both = residual_connection(images + more, anchors, 0.3)
    apart = residual_connection(images, anchors, 0.3) + 0.3 * more
    torch.testing.assert_close(both, apart)
    blend = residual_connection(images.round(), anchors.round(), 0.3)
    assert blend.min() >= 0
    assert blend.max() <= 1


@pytest.mark.parametrize(("size", "target"), [(224, 200), (200, 224), (16, 11), (5, 9)])
def test_a_whole_image_is_resized_bilinearly(size: int, target: int) -> None:
    """FADRM's resize: no antialiasing and no aligned corners."""
    patches = rand(1, 3, size, size)
    expected = F.interpolate(patches, (target, target), mode="bilinear", align_corners=False)
    assert torch.equal(resample(patches, target), expected)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    """A resize to the same size must not blur, nor choke on 8-bit images."""
    patches = rand(2, 3, 7, 7)
    assert torch.equal(resample(patches, 7), patches)
    assert resample((255 * patches).byte(), 7).dtype == torch.uint8


@pytest.mark.parametrize(
    ("size", "grid", "target"), [(8, 2, 16), (8, 2, 15), (5, 3, 16), (8, 4, 8)]
)
def test_a_smaller_patch_is_tiled(size: int, grid: int, target: int) -> None:
    """Tiles that are stretched, misplaced, or do not cover the image."""
    patches = rand(2, 3, size, size)
    tiled = resample(patches, target, grid)
    assert tiled.shape == (2, 3, target, target)
    tile = (target + grid - 1) // grid
    small = F.interpolate(patches, (tile, tile), mode="bilinear", align_corners=False)
    for row in range(target):
        for column in range(target):
            expected = small[:, :, row % tile, column % tile]
            assert torch.equal(tiled[:, :, row, column], expected)


def test_fit_gap_is_the_mean_of_squared_distances() -> None:
    """A mean over pixels instead of a sum, or a norm that is not squared."""
    images, anchors = rand(2, 3, 3, 4, 4), rand(2, 3, 3, 4, 4, seed=1)
    total = 0.0
    for group in range(2):
        for image in range(3):
            pairs = zip(
                images[group, image].flatten().tolist(),
                anchors[group, image].flatten().tolist(),
                strict=True,
            )
            total += sum((x - p) ** 2 for x, p in pairs)
    assert fit_gap(images, anchors).item() == pytest.approx(total / 6, rel=1e-12)
    assert fit_gap(images, images) == 0


def test_a_fixed_anchor_stays(pool: Pool) -> None:
    """FADRM blends the image it started from in at every connection."""
    current = torch.tensor([5, 3, 3])
    queries = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    chosen = FixedAnchor().choose(Query(pool, 1, queries, torch.stack([current * 0, current]), 16))
    assert torch.equal(chosen, current)
    with pytest.raises(UsageError, match="real images"):
        FixedAnchor().choose(Query(pool, 1, queries, None, 16))


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    """A weight outside [0, 1] makes pixels that no image has."""
    with pytest.raises(UsageError, match="alpha"):
        FixedAnchor(alpha)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_the_last_alpha_is_a_share_too(alpha: float) -> None:
    """Only the first weight checked."""
    with pytest.raises(UsageError, match="last_alpha"):
        FixedAnchor(last_alpha=alpha)


def test_alpha_goes_straight_from_the_first_to_the_last() -> None:
    """An end that is never reached, or a single connection divided by zero."""
    assert [share_at(0.5, 0.9, i, 3) for i in range(3)] == pytest.approx([0.5, 0.7, 0.9])
    assert [share_at(0.5, None, i, 3) for i in range(3)] == [0.5] * 3
    assert share_at(0.5, 0.9, 0, 1) == 0.5
