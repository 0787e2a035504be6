"""What many tests share: one thread, and a set of images with teachers small enough to be quick."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

# On tiny tensors more threads only wait for each other: twenty times slower on a busy machine.
# Before torch is imported, so that it holds for the processes that tests start as well.
os.environ["OMP_NUM_THREADS"] = "1"
# A cluster that someone left on this machine is not to be joined.
os.environ["RAY_ADDRESS"] = "local"
# Ray's own 15 lets its workers starve beside other work: minutes become hours.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - spelt like this by Ray

import pytest
import torch

from reta.data.images import ImageSet
from reta.models import Classifier
from reta.synthesis.pool import Pool, build_pool
from small_world import CLASSES, PER_CLASS, SIZE, make_images, make_teacher

torch.set_num_threads(1)

_PROMISE = "promise put to the test"


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str, int, str], None]:
    """Return what notes how often a promise was put to the test; printed when all is done."""

    def noted(what: str, times: int, outcome: str) -> None:
        record_property(_PROMISE, (what, f"{times}: {outcome}"))

    return noted


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts: they are the claim.

    They come with the tests' reports, from whichever process ran the test.
    """
    found: dict[str, list[str]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name == _PROMISE:
                    found.setdefault(value[0], []).append(value[1])
    if found:
        terminalreporter.section("promises put to the test")
        for what, outcomes in sorted(found.items()):
            terminalreporter.write_line(f"{what}: {'; '.join(outcomes)}")


@pytest.fixture(scope="session")
def image_set() -> ImageSet:
    """Four classes of nine images of 16 px, in no order."""
    return make_images(CLASSES, PER_CLASS, SIZE)


@pytest.fixture(scope="session")
def committee() -> list[Classifier]:
    """Two frozen teachers with different weights and the same normalisation."""
    return [make_teacher(1), make_teacher(2)]


@pytest.fixture(scope="session")
def pool(image_set: ImageSet, committee: list[Classifier]) -> Pool:
    """The images as the first teacher sees them."""
    return build_pool(image_set, committee[0])


@pytest.fixture(scope="session")
def double_committee(committee: list[Classifier]) -> list[Classifier]:
    """The same teachers in float64, to tell an error of the method from rounding."""
    return [copy.deepcopy(teacher).double() for teacher in committee]


@pytest.fixture(scope="session")
def double_pool(image_set: ImageSet, double_committee: list[Classifier]) -> Pool:
    """The pool of the float64 teachers."""
    return build_pool(image_set, double_committee[0])
