"""Soft labels against forward passes in train mode, one micro-batch at a time."""

from __future__ import annotations

import copy

import pytest
import torch

from reta.committee import committee_logits
from reta.data.formats import Bytes, information_lost
from reta.data.labels import draw_epoch, micro_batches
from reta.models import Classifier, batch_statistics, build, freeze
from reta.runtime import full_precision, half_precision
from reta.synthesis.relabel import relabel
from small_world import make_teacher


def some_images(count: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def in_train_mode(teacher: Classifier, views: torch.Tensor) -> torch.Tensor:
    """Return what a train-mode forward pass of a copy says (without its dropout)."""
    model = copy.deepcopy(teacher).train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.eval()
    with torch.no_grad():
        return model(views)


def sizes_of(count: int) -> list[int]:
    return [part.stop - part.start for batch in micro_batches(count) for part in batch]


@pytest.mark.parametrize("count", [1, 5, 8, 17, 21])
def test_logits_are_those_of_separate_passes(
    count: int, double_committee: list[Classifier]
) -> None:
    """Statistics over the whole batch, over running values, or logits averaged as probabilities."""
    views = some_images(count).double() / 255
    got = committee_logits(double_committee, views, sizes_of(count))
    expected = torch.cat(
        [
            sum(in_train_mode(teacher, part) for teacher in double_committee) / 2
            for part in views.split(sizes_of(count))
        ]
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    eval_mode = (double_committee[0](views) + double_committee[1](views)) / 2
    assert (got - eval_mode).abs().max() > 0.01


def test_many_micro_batches_share_passes() -> None:
    """Micro-batches of one pass normalised together, or the short last one with the others."""
    teacher = make_teacher(3).double()
    views = some_images(51).double() / 255
    sizes = sizes_of(51)
    assert sizes == [8] * 6 + [3]
    got = committee_logits([teacher], views, sizes)
    expected = torch.cat([in_train_mode(teacher, part) for part in views.split(sizes)])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v2"])
def test_branching_teachers_too(name: str) -> None:
    """Layers that are not called in a row, views that are not contiguous, and dropout left off."""
    teacher = freeze(build(name, 3, 16)).double()
    views = some_images(16).double() / 255
    got = committee_logits([teacher], views, [8, 8])
    expected = torch.cat([in_train_mode(teacher, part) for part in views.split(8)])
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


def test_teachers_are_left_as_they_were(committee: list[Classifier]) -> None:
    """Running statistics that drift, or a layer that keeps batch statistics for good."""
    before = [copy.deepcopy(teacher.state_dict()) for teacher in committee]
    view = some_images(3).float() / 255
    logits = [teacher(view) for teacher in committee]
    relabel(committee, some_images(9), range(2), seed=0)
    for teacher, state, old in zip(committee, before, logits, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
        assert not teacher.training
        assert torch.equal(teacher(view), old)
    with pytest.raises(RuntimeError, match="midway"), batch_statistics(committee[0], 3):
        raise RuntimeError("midway")
    assert torch.equal(committee[0](view), logits[0])


def test_shards_of_any_size_agree(committee: list[Classifier]) -> None:
    """Draws from a running stream: epoch 2 would depend on where its shard begins."""
    images = some_images(18)
    whole = relabel(committee, images, range(4), seed=1)
    for epoch in range(4):
        (alone,) = (relabel(committee, images, range(epoch, epoch + 1), seed=1),)
        torch.testing.assert_close(alone.logits[0], whole.logits[epoch], rtol=0, atol=1e-5)
        assert torch.equal(alone.epochs[0].order, whole.epochs[epoch].order)
        assert torch.equal(alone.epochs[0].views.boxes, whole.epochs[epoch].views.boxes)
    other = relabel(committee, images, range(1), seed=2)
    assert not torch.equal(other.epochs[0].order, whole.epochs[0].order)
    assert not torch.allclose(whole.logits[0], whole.logits[1])


@pytest.mark.parametrize("count", [31, 32, 33, 49])
def test_labels_do_not_depend_on_the_views_in_memory(
    count: int, committee: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views rendered some at a time: a CutMix partner or a left-over image beyond the cut."""
    images = some_images(count)
    whole = relabel(committee, images, range(2), seed=1)
    monkeypatch.setattr("reta.synthesis.relabel.images_per_pass", lambda size, device: 32)
    pieces = relabel(committee, images, range(2), seed=1)
    assert pieces.logits.shape == (2, count, 4)
    torch.testing.assert_close(pieces.logits, whole.logits, rtol=1e-4, atol=1e-4)


def test_labels_belong_to_the_views_that_are_stored(committee: list[Classifier]) -> None:
    """Labels in the order of the images instead of the order shown: every label would be wrong."""
    images = some_images(18)
    shard = relabel(committee, images, range(3, 5), seed=1, crop=(0.5, 1.0), flip=False)
    for row, epoch in enumerate((3, 4)):
        stored = shard.epochs[row]
        expected = draw_epoch(1, epoch, 18, 16, (0.5, 1.0), False)
        assert torch.equal(stored.views.boxes, expected.views.boxes)
        assert not stored.views.flips.any()
        views = stored.render(images, torch.arange(18))
        logits = [
            sum(in_train_mode(teacher, part) for teacher in committee) / 2
            for part in views.split(sizes_of(18))
        ]
        torch.testing.assert_close(shard.logits[row], torch.cat(logits), rtol=1e-3, atol=1e-3)
    assert shard.logits.shape == (2, 18, 4)
    assert shard.logits.dtype == torch.float32


@pytest.mark.skipif(half_precision(torch.device("cpu"))[0] is None, reason="no float16 here")
def test_teachers_in_float16_lose_less_than_labels_in_8_bits(committee: list[Classifier]) -> None:
    """Statistics or logits in 16 bits: at T = 20 labels differ by little, all of it signal."""
    images = some_images(64)
    short = relabel(committee, images, range(1), seed=0).logits[0]
    with full_precision():
        exact = relabel(committee, images, range(1), seed=0).logits[0]
    assert not torch.equal(short, exact)
    stored = Bytes().decode(Bytes().encode(exact), exact.shape[1])
    lost = information_lost(exact, short, 20.0)
    assert 0 < lost < information_lost(exact, stored, 20.0)


@pytest.mark.skipif(half_precision(torch.device("cpu"))[0] is None, reason="no float16 here")
def test_a_teacher_beyond_the_range_of_float16_answers_in_float32() -> None:
    """Labels that are NaN because an activation passed 65504."""
    teacher = make_teacher(3)
    first = next(part for part in teacher.modules() if isinstance(part, torch.nn.Conv2d))
    first.weight.data *= 1e7  # batch statistics take the factor back
    got = relabel([teacher], some_images(16), range(1), seed=0).logits
    with full_precision():
        exact = relabel([teacher], some_images(16), range(1), seed=0).logits
    torch.testing.assert_close(got, exact)
