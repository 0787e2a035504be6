"""Views and CutMix against torchvision and plain slicing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ks_2samp
from torchvision.transforms import RandomResizedCrop

from reta.data.augment import (
    Views,
    cutmix,
    identity_views,
    padded_views,
    random_mix,
    random_views,
    render,
    sampling_matrix,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def by_torchvision(image: torch.Tensor, views: Views, index: int, size: int) -> torch.Tensor:
    box = views.boxes[index].tolist()
    view = tv.resized_crop(image, *box, [size, size], antialias=True)
    if views.flips[index]:
        view = tv.horizontal_flip(view)
    return torch.roll(view, views.shifts[index].tolist(), (-2, -1))


@pytest.mark.parametrize(("size", "out"), [(16, 16), (33, 33), (40, 12), (12, 40), (9, 1)])
def test_render_is_resized_crop_flip_and_roll(size: int, out: int) -> None:
    """A wrong filter, half-pixel offset, order of flip and roll, or a swap of the axes."""
    views = random_views(rng(size), 12, size, shift=5, out_size=out)
    images = random_images(12, 3, size, size)
    shown = render(images, views, out)
    for index, image in enumerate(images):
        expected = by_torchvision(image, views, index, out)
        torch.testing.assert_close(shown[index], expected, rtol=0, atol=1e-5)


def test_render_of_a_one_pixel_crop_and_of_oblong_boxes() -> None:
    """Division by zero for the smallest box; height and width exchanged for oblong ones."""
    boxes = torch.tensor([[3, 5, 1, 1], [0, 0, 1, 10], [9, 0, 1, 10], [0, 9, 10, 1], [2, 1, 7, 3]])
    count = len(boxes)
    views = Views(boxes, torch.zeros(count, dtype=torch.bool), torch.zeros(count, 2).long())
    images = random_images(count, 3, 10, 10)
    for index, image in enumerate(images):
        expected = by_torchvision(image, views, index, 10)
        torch.testing.assert_close(render(images, views, 10)[index], expected, rtol=0, atol=1e-5)


def test_parts_of_a_box_outside_the_image_are_black() -> None:
    """Weights renormalised over the part inside would stretch the border instead."""
    boxes = torch.tensor([[-3, 0, 9, 10], [4, 6, 9, 9], [-2, -4, 15, 20], [1, 2, 3, 4]])
    views = Views(boxes, torch.zeros(4, dtype=torch.bool), torch.zeros(4, 2).long())
    images = 0.2 + 0.8 * random_images(4, 3, 10, 10)
    shown = render(images, views, 13)
    assert shown[0, :, 0].max() == 0
    for index, image in enumerate(images):
        expected = by_torchvision(image, views, index, 13)
        torch.testing.assert_close(shown[index], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("out", [8, 24])
def test_gradient_of_render_is_that_of_torchvision(out: int) -> None:
    """A rendering that is right in value but whose backward pass loses or moves pixels."""
    views = random_views(rng(1), 6, 16, shift=3, out_size=out)
    ours = random_images(6, 3, 16, 16).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weight = torch.randn(6, 3, out, out, generator=torch.Generator().manual_seed(1))
    (render(ours, views, out) * weight).sum().backward()
    expected = [by_torchvision(theirs[index], views, index, out) for index in range(6)]
    (torch.stack(expected) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5)


def test_float64_images_are_rendered_in_float64() -> None:
    """Sampling weights rounded to float32 would blur every float64 check of the loop."""
    views = random_views(rng(2), 4, 33)
    images = random_images(4, 3, 33, 33, dtype=torch.float64)
    shown = render(images, views, 33)
    for index, image in enumerate(images):
        expected = by_torchvision(image, views, index, 33)
        torch.testing.assert_close(shown[index], expected, rtol=0, atol=1e-12)


def test_one_view_is_shared_by_a_group() -> None:
    """Groups mixed up when the axes between view and pixels are folded."""
    views = random_views(rng(3), 2, 16, shift=4)
    groups = random_images(2, 5, 3, 16, 16)
    shown = render(groups, views, 16)
    assert shown.shape == groups.shape
    for group in range(2):
        for image in range(5):
            expected = by_torchvision(groups[group, image], views, group, 16)
            torch.testing.assert_close(shown[group, image], expected, rtol=0, atol=1e-5)


def test_identity_views_show_the_images() -> None:
    """A whole-image view that resamples instead of copying."""
    images = random_images(3, 3, 13, 13)
    assert torch.equal(render(images, identity_views(3, 13, 13), 13), images)


@pytest.mark.parametrize("pad", [1, 4])
def test_padded_views_are_zero_padding_and_a_crop(pad: int) -> None:
    """Borders that are stretched or repeated instead of black, or corners of the wrong sign."""
    views = padded_views(rng(4), 40, 12, pad=pad, flip=True)
    images = random_images(40, 3, 12, 12)
    shown = render(images, views, 12)
    padded = torch.nn.functional.pad(images, [pad] * 4)
    for index in range(40):
        top, left = (views.boxes[index, :2] + pad).tolist()
        expected = padded[index, :, top : top + 12, left : left + 12]
        expected = expected.flip(-1) if views.flips[index] else expected
        torch.testing.assert_close(shown[index], expected, rtol=0, atol=1e-6)


def test_padded_views_move_evenly_in_all_directions() -> None:
    """Shifts that miss an end of the range, favour a direction or never mirror."""
    views = padded_views(rng(5), 4000, 12, pad=2, flip=True)
    corners = torch.stack([(views.boxes[:, 0] + 2), (views.boxes[:, 1] + 2)], 1)
    counts = (corners[:, 0] * 5 + corners[:, 1]).bincount(minlength=25)
    assert len(counts) == 25
    assert 110 < counts.min() <= counts.max() < 215  # 160 expected, 12 the standard deviation
    assert (views.boxes[:, 2:] == 12).all()
    assert 0.46 < views.flips.float().mean() < 0.54
    assert not padded_views(rng(5), 100, 12, pad=2, flip=False).flips.any()


@settings(max_examples=50, deadline=None)
@given(
    start=st.integers(0, 20), length=st.integers(1, 20), extra=st.integers(0, 9),
    out=st.integers(1, 30),
)  # fmt: skip
def test_sampling_weights_are_a_mean_of_the_stretch(
    start: int, length: int, extra: int, out: int
) -> None:
    """Weights that reach outside the crop, or rows that do not sum to one, change brightness."""
    size = start + length + extra
    (matrix,) = sampling_matrix(torch.tensor([start]), torch.tensor([length]), size, out)
    assert matrix.shape == (out, size)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(out, dtype=matrix.dtype))
    assert (matrix[:, :start] == 0).all()
    assert (matrix[:, start + length :] == 0).all()


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_crops_are_distributed_as_in_torchvision(scale: tuple[float, float]) -> None:
    """Another law of area, aspect, position or of the way out when ten tries fail."""
    views = random_views(rng(6), 3000, 32, scale=scale)
    image = torch.zeros(3, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(3000)]
    ours, theirs = views.boxes.numpy(), np.array(draws)
    for quantity in (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2],
        lambda box: box[:, 3],
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] / (33 - box[:, 2]),
    ):
        assert ks_2samp(quantity(ours), quantity(theirs), method="asymp").pvalue > 1e-3
    assert binomtest(int(views.flips.sum()), 3000).pvalue > 1e-3


def test_impossible_crops_fall_back_to_the_whole_image() -> None:
    """Ten failed tries (each as long as the image is wide, and longer) must not yield a box."""
    views = random_views(rng(), 50, 16, scale=(1.0, 1.0), ratio=(2.0, 3.0))
    assert (views.boxes == torch.tensor([0, 0, 16, 16])).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), shift=st.integers(0, 60))
def test_boxes_lie_inside_and_shifts_within_reach(seed: int, size: int, shift: int) -> None:
    """A crop that reaches outside would be rendered darker; a shift beyond the side is a wrap."""
    views = random_views(rng(seed), 20, size, shift=shift)
    low, length = views.boxes[:, :2], views.boxes[:, 2:]
    assert (low >= 0).all()
    assert (length >= 1).all()
    assert (low + length <= size).all()
    assert views.shifts.min() >= 0
    assert views.shifts.max() <= min(shift, size - 1)


def test_shifts_cover_zero_to_the_largest() -> None:
    """FADRM's U{0 … jitter}: an exclusive upper end would never shift by the full amount."""
    shifts = random_views(rng(7), 600, 32, shift=4).shifts
    assert sorted(shifts.unique().tolist()) == [0, 1, 2, 3, 4]
    assert (shifts[:, 0] != shifts[:, 1]).any()


def test_same_generator_same_views() -> None:
    """Draws from anywhere but the generator given."""
    one, same, other = (random_views(rng(seed), 8, 32, shift=4) for seed in (1, 1, 2))
    for part in ("boxes", "flips", "shifts"):
        assert torch.equal(getattr(one, part), getattr(same, part))
    assert not torch.equal(one.boxes, other.boxes)
    assert not random_views(rng(1), 50, 32, flip=False).flips.any()


def test_views_can_be_indexed() -> None:
    """A part of the views that is left behind when some are taken."""
    views = random_views(rng(8), 10, 32, shift=4)
    some = views[torch.tensor([7, 2, 2])]
    assert len(some) == 3
    assert torch.equal(some.boxes, views.boxes[[7, 2, 2]])
    assert torch.equal(some.flips, views.flips[[7, 2, 2]])
    assert torch.equal(some.shifts, views.shifts[[7, 2, 2]])


def test_cutmix_is_a_slice_copied() -> None:
    """Rows and columns of the box exchanged, an end off by one, or the input written to."""
    mix = random_mix(rng(9), 40, 14, 16)
    images, before = random_images(40, 3, 14, 14), random_images(40, 3, 14, 14)
    others = images[mix.partners]
    mixed = cutmix(images, others, mix.boxes)
    for index in range(40):
        top, left, height, width = mix.boxes[index].tolist()
        expected = images[index].clone()
        for row in range(top, top + height):
            for column in range(left, left + width):
                expected[:, row, column] = others[index, :, row, column]
        assert torch.equal(mixed[index], expected)
    assert torch.equal(images, before)


def test_partners_stay_within_their_batch_and_share_a_box() -> None:
    """FADRM draws one box and one permutation per batch of 16; a stray partner has no pixels."""
    mix = random_mix(rng(10), 43, 32, 16)
    for begin, end in ((0, 16), (16, 32), (32, 43)):
        assert sorted(mix.partners[begin:end].tolist()) == list(range(begin, end))
        assert (mix.boxes[begin:end] == mix.boxes[begin]).all()
    assert not torch.equal(mix.boxes[0], mix.boxes[16])


def test_area_cut_out_is_that_of_a_uniform_share() -> None:
    """λ ~ U(0, 1) with boxes clipped at the border; λ taken as a side would halve the area.

    With side a, a² = 1 − λ, and a uniform centre each axis covers a − a²/4 on average, so the
    mean share is E[u (1 − √u / 4)²] = 1/2 − 1/5 + 1/48.
    """
    boxes = random_mix(rng(11), 6000, 224, 1).boxes.double()
    shares = boxes[:, 2] * boxes[:, 3] / 224**2
    assert shares.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.012)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 224).all()
    whole = (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, :2] + boxes[:, 2:] < 224).all(1)
    assert torch.equal(boxes[whole, 2], boxes[whole, 3])  # square unless clipped
