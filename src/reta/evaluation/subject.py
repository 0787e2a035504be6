"""What an evaluation measures, and everything it may measure with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from reta.data.distilled import DistilledSet
from reta.data.sources import Source
from reta.errors import UsageError, unknown
from reta.evaluation.result import Result
from reta.methods import METHODS
from reta.models import Classifier
from reta.runtime import precision_asked
from reta.storage import RunFolder, fingerprint
from reta.synthesis.pool import Pool


@dataclass(frozen=True)
class Trained:
    """A model trained on the distilled set alone.

    Attributes:
        architecture: its name.
        seed: of its weights.
        model: frozen.
        last: accuracy on the real test images after the last epoch.
        best: the best seen, chosen on test images.
        digest: SHA-256 of its weights.
    """

    architecture: str
    seed: int
    model: Classifier
    last: float
    best: float
    digest: str


@dataclass(frozen=True)
class Subject:
    """A distilled set to be measured.

    Work that is expensive asks the subject to do it `once`: a unit of the run folder, so that an
    interrupted evaluation continues.

    Attributes:
        run: the run folder.
        shared: where units that do not depend on the distilled set are kept: the comparison
            folder the run belongs to, or the run itself.
        manifest: what the run says of itself.
        source: the real images.
        device: where models run.
        data: the distilled set, with logits.
        student: architecture of the students.
        seeds: how many students, with seeds 0, 1, …
        learning_rate: of the students' protocol.
        stretch: of the students' protocol.
        train: students of an architecture, so many; trained on the set unless they are there.
        prepare: the frozen committee and the pool of real images.
        distil: distil some classes apart from all others, teachers included, with the run's own
            method (None) or another and its seed, so many images of each:
            ``(classes, ipc, 3, s, s)`` uint8.
        distil_again: distil all classes as the run was, with so many images of each.
    """

    run: RunFolder
    shared: RunFolder
    manifest: Mapping[str, Any]
    source: Source
    device: torch.device
    data: DistilledSet
    student: str
    seeds: int
    learning_rate: float
    stretch: float
    train: Callable[[str, int], list[Trained]]
    prepare: Callable[[], tuple[list[Classifier], Pool]]
    distil: Callable[[Sequence[int], str | None, int, int], torch.Tensor]
    distil_again: Callable[[int], torch.Tensor]

    @cached_property
    def students(self) -> list[Trained]:
        """The students of the set."""
        return self.train(self.student, self.seeds)

    @cached_property
    def _teachers(self) -> tuple[list[Classifier], Pool]:
        return self.prepare()

    @property
    def committee(self) -> list[Classifier]:
        """The frozen teachers; the first gives the features φ."""
        return self._teachers[0]

    @property
    def pool(self) -> Pool:
        """The real images as the first teacher sees them."""
        return self._teachers[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.source.classes

    @property
    def ipc(self) -> int:
        """Distilled images per class."""
        return len(self.data) // len(self.classes)

    @property
    def images(self) -> torch.Tensor:
        """The distilled images by class, ``(classes, ipc, 3, s, s)`` uint8."""
        shape = (len(self.classes), self.ipc, *self.data.images.shape[1:])
        return self.data.images.view(shape)

    def resized(self, ipc: int) -> torch.Tensor:
        """Return the distilled images as if the run had so many of each class."""
        return self.images if ipc == self.ipc else self.distil_again(ipc)

    def choose(self, method: str, seed: int, ipc: int) -> torch.Tensor:
        """Return the real images a method starts from, ``(classes, ipc, 3, s, s)`` uint8.

        Raises:
            UsageError: if the method optimises its images; compare with a run of it instead.
        """
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        recipe = METHODS[method]
        if recipe.steps or recipe.engine:
            raise UsageError(f"{method} optimises its images: distil a run and evaluate that")
        labels = range(len(self.classes))
        start = recipe.start(self.pool, self.committee[0], labels, ipc, seed)
        return (start.images.transpose(0, 1) * 255).round().to(torch.uint8).contiguous().cpu()

    @cached_property
    def digest(self) -> str:
        """SHA-256 that names the images and labels of the set."""
        files = self.manifest["files"]
        own = {name: value for name, value in files.items() if name.startswith(_SET)}
        return fingerprint(own)

    def once(
        self,
        name: str,
        inputs: Mapping[str, Any],
        compute: Callable[[], Mapping[str, Any]],
        *,
        shared: bool = False,
    ) -> dict[str, Any]:
        """Return JSON facts, computed unless a unit of these inputs holds them already.

        Args:
            name: of the unit.
            inputs: what the facts depend on, besides the distilled set (or, if ``shared``,
                besides the real images).
            compute: returns the facts.
            shared: whether the facts are the same for every set distilled from these images.
        """
        folder = self.shared if shared else self.run
        of = self.source.fingerprint if shared else self.digest
        asked = {"precision": precision_asked()} if precision_asked() else {}
        unit = folder.unit(f"evaluate-{name}", {"of": of, **asked, **inputs})
        if not unit.done:
            unit.finish(compute())
        return unit.facts


_SET = ("images/", "labels/")


class Evaluation(Protocol):
    """Something that can be measured of a distilled set; its fields are its settings."""

    def measure(self, subject: Subject) -> Result:
        """Return the outcome; slow parts are units of the run folder."""
        ...
