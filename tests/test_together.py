"""Students trained in one pass, against the same students trained one after another."""

from __future__ import annotations

import copy

import pytest
import torch

from reta.data.distilled import DistilledSet
from reta.data.images import DecodedImages
from reta.errors import UsageError
from reta.models import Classifier, build
from reta.synthesis.relabel import relabel
from reta.together import train_together
from reta.training import Protocol, train_student
from small_world import make_teacher


@pytest.fixture(scope="module")
def data() -> DistilledSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (18, 3, 8, 8), generator=generator).to(torch.uint8)
    shard = relabel([make_teacher(1, 3, 8)], images, range(2), seed=0)
    return DistilledSet(images, torch.arange(18) % 3, ("a", "b", "c"), [shard], None)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("convnet3", Protocol(3, learning_rate=0.01, weight_decay=0.5)),
        ("shufflenet_v2_x0_5", Protocol(2, hard_weight=0.1, ema=0.9)),
    ],
)
def test_each_is_trained_as_if_alone(data: DistilledSet, name: str, protocol: Protocol) -> None:
    """Statistics, gradients, decay or rates of one student in another: float64, some steps."""
    test = DecodedImages(data.images, data.labels, data.classes)
    students = [build(name, 3, 8, seed=seed).double() for seed in range(3)]
    alone = copy.deepcopy(students)
    records = train_together(students, data, test, protocol)
    for own, other, record in zip(students, alone, records, strict=True):
        assert record.curve == train_student(other, data, test, protocol, seed=0).curve
        for key, value in other.state_dict().items():
            # A step is 1e-3 and more; AdamW makes much of how a gradient near its ε is rounded.
            torch.testing.assert_close(own.state_dict()[key], value, rtol=1e-6, atol=1e-6)
    first, second = (next(student.parameters()) for student in students[:2])
    assert not torch.equal(first, second)


def test_dropout_is_refused(data: DistilledSet) -> None:
    """Students that would differ from those trained alone, without a word."""
    test = DecodedImages(data.images, data.labels, data.classes)
    student: Classifier = build("mobilenet_v2", 3, 8)
    assert any(isinstance(part, torch.nn.Dropout) for part in student.modules())
    with pytest.raises(UsageError, match="one by one"):
        train_together([student], data, test, Protocol(1))
