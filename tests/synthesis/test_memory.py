"""Running out of memory changes how much is done at once, and nothing else."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from crashes import start, wait
from reta.data.images import DecodedImages
from reta.errors import MemoryLimitError
from reta.methods import METHODS
from reta.models import Classifier, build, freeze, preferred_layout
from reta.synthesis.loop import Settings, recover
from reta.synthesis.matching import Matching
from reta.synthesis.pool import Pool, build_pool
from reta.synthesis.recipe import Recipe
from reta.synthesis.schedule import Schedule
from small_world import CLASSES, SIZE


@dataclass(frozen=True)
class SmallDevice(Matching):
    """The usual objective on a device that holds so many images."""

    most: int = 0

    def __call__(self, probe, images, labels):
        if images.shape[:2].numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().__call__(probe, images, labels)


def recipe(method: str, objective: Matching | None = None) -> Recipe:
    return replace(METHODS[method], schedule=Schedule(6, 1), objective=objective or Matching())


@pytest.mark.parametrize("method", ["fadrm+", "reta-paper"])
@pytest.mark.parametrize("most", [CLASSES, 2 * CLASSES, 5 * CLASSES - 1])
def test_less_memory_gives_the_same_images(
    method: str, most: int, double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Breaks when a smaller pass changes a batch, its statistics or a step that was begun."""
    settings = Settings(5, images_per_pass=100)
    plenty = recover(recipe(method), double_committee, double_pool, range(CLASSES), settings)
    small = SmallDevice(most=most)
    scarce = recover(recipe(method, small), double_committee, double_pool, range(CLASSES), settings)
    assert plenty.images_per_pass == 5 * CLASSES
    assert CLASSES <= scarce.images_per_pass <= most
    assert torch.equal(plenty.images, scarce.images)  # in float64 rounding does not show


@pytest.mark.parametrize("method", ["fadrm+", "reta-paper"])
def test_packing_changes_no_byte_of_a_convnet(
    method: str, committee: list[Classifier], pool: Pool
) -> None:
    """Breaks when float32 rounds differently for another number of groups in a pass (on a CPU)."""
    runs = [
        recover(recipe(method), committee, pool, range(CLASSES), Settings(5, images_per_pass=size))
        for size in (CLASSES, 2 * CLASSES, 3 * CLASSES, 100)
    ]
    for other in runs[1:]:
        assert torch.equal(runs[0].images, other.images)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("shufflenet_v2_x0_5", "resnet18", "densenet121", "efficientnet_b0")
        ),
    ],
)
def test_packing_changes_no_byte_of_any_network(name: str, image_set: DecodedImages) -> None:
    """Breaks when a kernel that rounds by the number of images is used for several groups."""
    teacher = freeze(build(name, CLASSES, SIZE, seed=0))
    teacher = teacher.to(memory_format=preferred_layout(teacher))
    pool = build_pool(image_set, teacher)
    short = replace(METHODS["reta-paper"], schedule=Schedule(2, 1))
    runs = [
        recover(short, [teacher], pool, range(CLASSES), Settings(4, images_per_pass=size))
        for size in (CLASSES, 3 * CLASSES, 100)
    ]
    for other in runs[1:]:
        assert torch.equal(runs[0].images, other.images)
        assert runs[0].steps == other.steps  # every loss, to the last digit


def test_a_group_that_does_not_fit_is_said_with_the_fix(
    committee: list[Classifier], pool: Pool
) -> None:
    """Breaks when a group is split, which would change its statistics, or tried for ever."""
    objective = SmallDevice(most=CLASSES - 1)
    with pytest.raises(MemoryLimitError, match="lower --block"):
        recover(recipe("fadrm+", objective), committee, pool, range(CLASSES), Settings(4))


def test_a_batch_of_whole_classes_is_not_split(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when it is tried again and again in the same size, or said to be another."""
    objective = SmallDevice(most=3, batch="class")
    with pytest.raises(MemoryLimitError, match="group of 12 images"):
        recover(recipe("sre2l", objective), committee, pool, [0, 1, 2], Settings(4))


def test_a_real_limit_of_the_process(committee: list[Classifier], pool: Pool, tmp_path) -> None:
    """Breaks when what torch says on a CPU is not recognised as a lack of memory."""
    settings = Settings(300, images_per_pass=100_000)
    said = tmp_path / "said"

    def work() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 250_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        short = replace(METHODS["fadrm"], schedule=Schedule(2, 0))
        result = recover(short, committee, pool, range(CLASSES), settings)
        said.write_text(str(result.images_per_pass))

    assert wait(start(work)) == 0
    assert CLASSES <= int(said.read_text()) < 300 * CLASSES
