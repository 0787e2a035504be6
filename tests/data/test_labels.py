"""Soft labels: what is stored is what was said, to the bit or to a known error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from reta.data.formats import FORMATS, ONLINE, label_format
from reta.data.labels import Epoch, LabelShard, StoredShard, draw_epoch, micro_batches
from reta.errors import DataError, DivergedError


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


def stored(shard: LabelShard, name: str = "int8", top: int = 3) -> StoredShard:
    """Return a shard as it is read back from its tensors."""
    assert shard.logits is not None
    classes = tuple(map(str, range(shard.logits.shape[-1])))
    facts = {"classes": classes, "format": name, "top": top}
    tensors = shard.tensors(label_format(name, top))
    return StoredShard.read(tensors, facts, classes, shard.logits.shape[1], "views")


@pytest.mark.parametrize("form", [name for name in FORMATS if name != ONLINE])
def test_shards_come_back_as_they_were(form: str) -> None:
    """A record that does not fit its small integer type, or an epoch or a slice out of place."""
    epochs = [draw_epoch(3, epoch, 37, 224, (0.08, 1.0), True) for epoch in (5, 6, 7)]
    logits = some_logits(3, 37, 11)
    back = stored(LabelShard(epochs, logits), form)
    assert len(back) == 3
    assert all(same_epoch(back.epoch(index), epoch) for index, epoch in enumerate(epochs))
    codec = label_format(form, 3)
    whole = codec.decode(codec.encode(logits), 11)
    for index, part in ((0, slice(0, 37)), (1, slice(8, 16)), (2, slice(36, 37))):
        decoded = back.decode(index, part)
        assert torch.equal(decoded, whole[index, part])
        assert decoded.dtype == torch.float32


def test_reading_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views replayed from a generator would change with its version: none may be asked."""
    epoch = draw_epoch(3, 0, 20, 12, (0.08, 1.0), True)
    shard = LabelShard([epoch], some_logits(1, 20, 5))
    expected = epoch.render(some_images(20), torch.arange(20))
    back = stored(shard)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a random generator was asked")

    for module in ("reta.runtime", "reta.data.labels"):
        monkeypatch.setattr(f"{module}.random_generator", refuse)
    before = torch.get_rng_state()
    shown = back.epoch(0).render(some_images(20), torch.arange(20))
    back.decode(0, slice(0, 20))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(shown, expected)


def test_large_images_and_many_positions_fit_the_records() -> None:
    """int16 positions would wrap beyond 32,767 images; int16 boxes are enough for any image."""
    epoch = draw_epoch(0, 0, 40_000, 2048, (0.08, 1.0), True)
    back = stored(LabelShard([epoch], torch.zeros(1, 40_000, 1)))
    assert same_epoch(back.epoch(0), epoch)


def test_a_record_takes_25_bytes() -> None:
    """Order 4, crop 8, flip 1, partner 4, CutMix box 8: a row beside 1,000 classes is small."""
    shard = LabelShard([draw_epoch(0, 0, 20, 12, (0.08, 1), True)], None)
    assert sum(tensor.nbytes for tensor in shard.tensors(None).values()) == 20 * 25


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no order": (lambda t: t.pop("order"), "expected"),
    "no logits": (lambda t: t.pop("codes"), "expected"),
    "other tensors": (lambda t: t.update(codez=t["codes"]), "codez"),
    "other type": (lambda t: t.update(codes=t["codes"].short()), "codes is torch.int16"),
    "too few classes": (lambda t: t.update(codes=t["codes"][..., :-1]), "codes is"),
    "too few views": (lambda t: t.update(flips=t["flips"][:, :-1]), "flips is"),
    "too few epochs": (lambda t: t.update(low=t["low"][:1]), "low is"),
    "no epochs": (lambda t: t.update({k: v[:0] for k, v in t.items()}), "order is"),
    "no axis": (lambda t: t.update(order=torch.tensor(3, dtype=torch.int32)), "order is"),
    "beyond the images": (lambda t: t.update(order=t["order"] + 1), "order must lie"),
    "negative partner": (lambda t: t.update(partners=t["partners"] - 1), "partners must lie"),
    "not a number": (lambda t: t.update(low=t["low"] * torch.nan), "no sizes or numbers"),
    "empty crop": (lambda t: t.update(boxes=t["boxes"] * 0), "no sizes or numbers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_is_refused(name: str) -> None:
    """A shard of another set, or one written wrongly, must not be trained on."""
    epochs = [draw_epoch(3, epoch, 20, 12, (0.08, 1.0), True) for epoch in (0, 1)]
    tensors = LabelShard(epochs, some_logits(2, 20, 5)).tensors(label_format("int8", 1))
    facts = {"classes": list("abcde"), "format": "int8"}
    StoredShard.read(tensors, facts, tuple("abcde"), 20, "views-000")
    change, message = DAMAGE[name]
    change(tensors)
    with pytest.raises(DataError, match=message) as refusal:
        StoredShard.read(tensors, facts, tuple("abcde"), 20, "views-000")
    assert "views-000" in str(refusal.value)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"classes": list("abdce"), "format": "int8"},
        {"classes": list("abcde"), "format": "int3"},
        {"classes": list("abcde"), "format": "float16"},
        {"classes": list("abcde"), "format": "online"},
    ],
)
def test_facts_must_fit_too(facts: dict[str, object]) -> None:
    """Other classes, an unknown format, or one the tensors are not of."""
    shard = LabelShard([draw_epoch(3, 0, 20, 12, (0.08, 1.0), True)], some_logits(1, 20, 5))
    tensors = shard.tensors(label_format("int8", 1))
    with pytest.raises(DataError, match="views-000"):
        StoredShard.read(tensors, facts, tuple("abcde"), 20, "views-000")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_labels_that_are_no_numbers_are_never_written(value: float) -> None:
    """A teacher that diverged; or a logit beyond what half precision holds, stored as infinity."""
    logits = some_logits(1, 20, 5)
    logits[0, 3, 2] = value
    shard = LabelShard([draw_epoch(3, 0, 20, 12, (0.08, 1.0), True)], logits)
    with pytest.raises(DivergedError):
        shard.tensors(label_format("float16", 1))


def test_hard_targets_are_the_classes_by_area() -> None:
    """The partner's class left out, or the share of the box taken for that of the image."""
    epoch = draw_epoch(2, 0, 21, 12, (0.08, 1.0), True)
    labels = torch.arange(7).repeat_interleave(3)
    marks = labels[:, None, None, None].expand(-1, 3, 12, 12).to(torch.uint8)
    whole = replace(epoch.views, boxes=torch.tensor([[0, 0, 12, 12]]).repeat(21, 1))
    shown = replace(epoch, views=whole).render(marks, torch.arange(21)).mul(255).round()
    targets = epoch.hard_targets(labels, torch.arange(21), 7, 12)
    for position in range(21):
        counts = torch.bincount(shown[position, 0].flatten().long(), minlength=7)
        torch.testing.assert_close(targets[position], counts / 144)
    some = torch.tensor([20, 3])
    assert torch.equal(epoch.hard_targets(labels, some, 7, 12), targets[some])


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
