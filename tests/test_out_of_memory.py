"""Less memory outside of recovery: smaller passes, the same answers; or what to change."""

from __future__ import annotations

import pytest
import torch

from reta import gate
from reta.committee import committee_logits
from reta.data.images import DecodedImages
from reta.errors import MemoryLimitError
from reta.memory import Halving
from reta.models import Classifier
from reta.synthesis.pool import look
from reta.training import Protocol, predict, train_teacher
from small_world import CLASSES, PER_CLASS, SIZE, make_teacher

COUNT = CLASSES * PER_CLASS


def short_of_memory(most: int) -> Classifier:
    """Return a teacher in double precision on a device that holds so many images."""
    teacher = make_teacher(1).double()

    def enter(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (inputs[0].double(),)

    teacher.trunk.register_forward_pre_hook(enter)
    return teacher


@pytest.mark.parametrize("most", [1, 5, 17])
def test_less_memory_gives_the_same_answers(most: int, image_set: DecodedImages) -> None:
    """Breaks when an image is lost, doubled or answered in another place after memory ran out."""
    plenty, scarce = short_of_memory(COUNT), short_of_memory(most)
    (seen, _), (less, _) = (look(image_set, one, range(COUNT)) for one in (plenty, scarce))
    for name, values in seen.items():
        assert torch.allclose(values, less[name], atol=1e-6), name
    assert torch.equal(predict(plenty, image_set), predict(scarce, image_set))
    answers = [gate._predict(one, image_set.images, None) for one in (plenty, scarce)]
    assert torch.equal(*answers)


def test_labels_keep_their_statistics(image_set: DecodedImages) -> None:
    """Breaks when a micro-batch is split, which would change what its labels are."""
    views, sizes = image_set.images[:36].double() / 255, [8, 8, 8, 8, 4]
    plenty = committee_logits([short_of_memory(COUNT)], views, sizes)
    assert torch.equal(committee_logits([short_of_memory(8)], views, sizes), plenty)
    with pytest.raises(MemoryLimitError, match="micro-batches of 8 views"):
        committee_logits([short_of_memory(7)], views, sizes)


def test_one_image_too_many_names_the_fix(image_set: DecodedImages) -> None:
    """Breaks when a pass that cannot be smaller is tried for ever."""
    with pytest.raises(MemoryLimitError, match=f"images of {SIZE} px .* lower --image-size"):
        look(image_set, short_of_memory(0), range(COUNT))


def test_a_training_batch_is_not_made_smaller(image_set: DecodedImages) -> None:
    """Breaks when training goes on with other batches than it says, or without a word."""
    model = make_teacher(1).requires_grad_()

    def enter(*_: object) -> None:
        if model.training:
            raise MemoryError("bad_alloc")

    model.trunk.register_forward_pre_hook(enter)
    with pytest.raises(MemoryLimitError, match=r"a batch of 16 images .* smaller --teachers"):
        train_teacher(model, image_set, image_set, Protocol(1), flip=True, seed=0)


def test_other_errors_are_left_alone() -> None:
    """Breaks when a mistake in the code counts as a lack of memory."""

    def fail(_: slice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Halving("things")(fail, 4)
