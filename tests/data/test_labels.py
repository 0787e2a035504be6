"""Soft labels: what is stored is what was said, to the bit or to a known error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reta.data.labels import (
    Epoch,
    LabelShard,
    dequantize,
    draw_epoch,
    micro_batches,
    quantize,
)


def some_images(count: int, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def some_logits(*shape: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def same_epoch(one: Epoch, other: Epoch) -> bool:
    pairs = [
        (one.order, other.order),
        (one.views.boxes, other.views.boxes),
        (one.views.flips, other.views.flips),
        (one.views.shifts, other.views.shifts),
        (one.mix.partners, other.mix.partners),
        (one.mix.boxes, other.mix.boxes),
    ]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays("float32", (3, 17), elements=st.floats(-200, 200, width=32)),
)
def test_quantisation_error_is_bounded(values: object) -> None:
    """Half a step; only the two ends may be off by what float16 loses of them (2⁻¹¹ each)."""
    logits = torch.from_numpy(values)
    codes, low, step = quantize(logits)
    error = (dequantize(codes, low, step) - logits).abs().double()
    low, step = low.double()[:, None], step.double()[:, None]
    inside = (logits >= low) & (logits <= low + 255 * step)
    assert (error <= 0.5 * step + 1e-4).where(inside, True).all()
    span = logits.amax(1) - logits.amin(1)
    ends = 2.0**-11 * (span + 2 * logits.abs().amax(1)) + 1e-4
    assert (error <= 0.5 * step + ends[:, None]).all()
    assert (step[:, 0] <= (span + ends) / 255 * (1 + 2.0**-9)).all()
    assert codes.dtype == torch.uint8


@pytest.mark.parametrize("value", [0.0, 3.25, -7.0])
def test_equal_logits_survive(value: float) -> None:
    """A step of zero must not divide by zero."""
    back = dequantize(*quantize(torch.full((2, 5), value)))
    torch.testing.assert_close(back, torch.full((2, 5), value))


def test_information_lost_at_the_training_temperature() -> None:
    """Labels coarser than 8 bits of the row's own range would cost accuracy unseen."""
    logits = some_logits(64, 1000).double()
    stored = dequantize(*quantize(logits.float())).double()
    log_p, log_q = (x.div(20).log_softmax(1) for x in (logits, stored))
    lost = (log_p.exp() * (log_p - log_q)).sum(1)
    known = (log_p.exp() * (log_p + torch.tensor(1000.0).double().log())).sum(1)
    assert (lost / known).max() <= 2e-4


def test_a_byte_per_class_and_view() -> None:
    """The reason for 8 bits: 1,000 classes must take 1.01 bytes each, half of float16."""
    shard = LabelShard([draw_epoch(0, 0, 20, 12, (0.08, 1), True)], some_logits(1, 20, 1000))
    small, large = shard.tensors("int8"), shard.tensors("float16")
    stored = sum(small[name].nbytes for name in ("codes", "low", "step"))
    assert stored / (20 * 1000) <= 1.01
    assert large["logits"].nbytes == 2 * 20 * 1000
    records = sum(t.nbytes for name, t in small.items() if name not in ("codes", "low", "step"))
    assert records / 20 <= 25  # order, box, flip, partner, box of the mix


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_shards_come_back_as_they_were(form: str) -> None:
    """A record that does not fit its small integer type, or an epoch out of place."""
    epochs = [draw_epoch(3, epoch, 37, 224, (0.08, 1.0), True) for epoch in (5, 6, 7)]
    logits = some_logits(3, 37, 11)
    tensors = LabelShard(epochs, logits).tensors(form)
    back = LabelShard.from_tensors(tensors)
    assert all(map(same_epoch, back.epochs, epochs))
    assert len(back.epochs) == 3
    expected = logits.half().float() if form == "float16" else dequantize(*quantize(logits))
    assert torch.equal(back.logits, expected)
    assert back.logits.dtype == torch.float32
    torch.testing.assert_close(back.logits, logits, rtol=0, atol=0.03)


def test_large_images_and_many_positions_fit_the_records() -> None:
    """int16 positions would wrap beyond 32,767 images; int16 boxes are enough for any image."""
    epoch = draw_epoch(0, 0, 40_000, 2048, (0.08, 1.0), True)
    back = LabelShard.from_tensors(LabelShard([epoch], torch.zeros(1, 40_000, 1)).tensors("int8"))
    assert same_epoch(back.epochs[0], epoch)


@pytest.mark.parametrize("count", range(1, 101))
def test_micro_batches_cover_everything_once(count: int) -> None:
    """An image labelled twice, left out, or alone in a batch without statistics."""
    batches = micro_batches(count)
    positions = [p for batch in batches for part in batch for p in range(part.start, part.stop)]
    assert positions == list(range(count))
    sizes = [[part.stop - part.start for part in batch] for batch in batches]
    flat = [size for batch in sizes for size in batch]
    assert min(flat) > 1 or count == 1
    assert max(flat) <= 9
    assert all(batch == [8, 8] for batch in sizes[:-1])
    assert sum(sizes[-1]) <= 17


def test_epochs_are_keyed_by_seed_and_number() -> None:
    """A running stream instead of a key would make labels depend on which shard was made."""
    epoch = draw_epoch(1, 4, 20, 32, (0.08, 1.0), True)
    assert same_epoch(epoch, draw_epoch(1, 4, 20, 32, (0.08, 1.0), True))
    assert not same_epoch(epoch, draw_epoch(1, 5, 20, 32, (0.08, 1.0), True))
    assert not same_epoch(epoch, draw_epoch(2, 4, 20, 32, (0.08, 1.0), True))
    assert sorted(epoch.order.tolist()) == list(range(20))
    assert not (epoch.views.shifts != 0).any()  # shards do not store shifts
    assert not draw_epoch(1, 4, 20, 32, (0.08, 1.0), False).views.flips.any()


def test_views_of_an_epoch_are_crops_of_the_ordered_images_mixed() -> None:
    """Order applied to the views instead of the images, or a partner's view cut from another."""
    images = some_images(21)
    epoch = draw_epoch(2, 0, 21, 12, (0.08, 1.0), True)

    def crop(position: int) -> torch.Tensor:
        image = images[epoch.order[position]].double() / 255
        view = tv.resized_crop(image, *epoch.views.boxes[position].tolist(), [12, 12])
        return view.flip(-1) if epoch.views.flips[position] else view

    shown = epoch.render(images, torch.arange(21))
    for position in range(21):
        expected = crop(position)
        top, left, height, width = epoch.mix.boxes[position].tolist()
        box = (slice(None), slice(top, top + height), slice(left, left + width))
        expected[box] = crop(int(epoch.mix.partners[position]))[box]
        torch.testing.assert_close(shown[position].double(), expected, rtol=0, atol=1e-5)


def test_single_positions_show_what_the_whole_batch_shows() -> None:
    """A view that depends on which others are rendered with it."""
    images = some_images(21)
    epoch = draw_epoch(3, 1, 21, 12, (0.08, 1.0), True)
    whole = epoch.render(images, torch.arange(21))
    for position in range(21):
        (alone,) = epoch.render(images, torch.tensor([position]))
        torch.testing.assert_close(alone, whole[position], rtol=0, atol=1e-6)
    some = torch.tensor([20, 3, 3, 16])
    torch.testing.assert_close(epoch.render(images, some), whole[some], rtol=0, atol=1e-6)


def test_unmixed_views_are_left_alone() -> None:
    """An empty CutMix box must change nothing."""
    images = some_images(6)
    epoch = draw_epoch(4, 0, 6, 12, (1.0, 1.0), False)
    mix = replace(epoch.mix, boxes=torch.zeros_like(epoch.mix.boxes))
    whole = replace(epoch.views, boxes=torch.tensor([[0, 0, 12, 12]]).repeat(6, 1))
    shown = replace(epoch, mix=mix, views=whole).render(images, torch.arange(6))
    torch.testing.assert_close(shown, images[epoch.order].float() / 255, rtol=0, atol=1e-6)
