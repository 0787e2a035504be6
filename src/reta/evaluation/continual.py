"""Class-incremental learning with a fixed memory (paper, Fig. 6): the distilled set as replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any, Literal

import torch

from reta.data.images import ImageSet
from reta.errors import UsageError
from reta.evaluation.learners import Examples, learn, recognised
from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Subject
from reta.models import Classifier, build, file_stem
from reta.progress import track
from reta.runtime import Stopwatch, random_generator
from reta.training import Protocol

OWN = "own"


def stages_of(classes: int, steps: int, order: int) -> list[list[int]]:
    """Return the labels of each stage, as equal in number as can be, in a drawn order."""
    drawn = random_generator(order, "continual").permutation(classes).tolist()
    bounds = [step * classes // steps for step in range(steps + 1)]
    return [drawn[begin:end] for begin, end in pairwise(bounds)]


def forgetting(matrix: Sequence[Sequence[float]]) -> float:
    """Return how much accuracy was lost on the average stage (Chaudhry et al., ECCV 2018).

    The mean, over all stages j but the last, of max over t < T of A[t][j] less A[T][j], where T
    is the last stage. Negative where later stages helped.

    Args:
        matrix: A[t][j], the accuracy after stage t on the test images of stage j ≤ t.
    """
    last = len(matrix) - 1
    if last < 1:
        return 0.0
    return mean(max(matrix[t][j] for t in range(j, last)) - matrix[last][j] for j in range(last))


@dataclass(frozen=True)
class Continual:
    """Class-incremental learning with the distilled set as replay memory (Fig. 6).

    Classes come in stages. A memory of M images in all holds M / C of each of the C classes; a
    class enters it when its stage ends. The learner is a model that goes on from stage to stage,
    each batch half new real images and half memory (``replay``); or one trained anew after each
    stage on the memory alone (``memory``, the protocol of DM and GDumb). All buffers have hard
    labels; only classes seen so far are told apart. Values are one per class order.

    Average incremental accuracy is the mean over stages of the accuracy on the test images of all
    classes seen so far; final accuracy is that of the last stage; forgetting is Chaudhry's.

    Attributes:
        steps: stages.
        sizes: images in the memory, over all classes; those that need more images per class than
            the set has are left out, and the set's own size is used if none fits.
        memory: ``offline`` takes the run as it is, whose teacher saw all classes (as the paper
            does); ``per-stage`` trains teachers and distils anew for every stage, from its classes
            alone.
        references: other buffers: methods that only choose real images, such as herding.
        learner: ``replay`` or ``memory``.
        orders: how many class orders, each with a model seed of its own.
        epochs: passes over a stage's images; by default 10 for replay, 100 for memory.
        learning_rate: of AdamW, falling to zero by a cosine in each stage.
    """

    steps: int = 5
    sizes: tuple[int, ...] = (200, 400, 600, 800, 1000)
    memory: Literal["offline", "per-stage"] = "offline"
    references: tuple[str, ...] = ("random", "herding")
    learner: Literal["replay", "memory"] = "replay"
    orders: int = 3
    epochs: int | None = None
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UsageError(f"continual.steps is {self.steps}; it takes at least 2 stages")
        if self.orders < 1 or (self.epochs is not None and self.epochs < 1):
            raise UsageError("continual.orders and continual.epochs must be at least 1")
        if OWN in self.references:
            raise UsageError(f"continual.references: {OWN!r} is the run itself")

    def measure(self, subject: Subject) -> Result:
        """Return the measures of every buffer at every size."""
        classes = len(subject.classes)
        if classes < self.steps:
            raise UsageError(
                f"{classes} classes make no {self.steps} stages; lower continual.steps"
            )
        sizes = [size for size in self.sizes if 1 <= size // classes <= subject.ipc]
        notes = _notes(self, sizes, subject)
        sizes = sizes or [classes * subject.ipc]
        cells = [
            (buffer, size, order)
            for buffer in (OWN, *self.references)
            for size in sizes
            for order in range(self.orders)
        ]
        curves: dict[str, dict[str, dict[str, list[Any]]]] = {}
        for buffer, size, order in track(cells, "continual learning", len(cells)):
            facts = self._cell(subject, buffer, size // classes, order)
            kept = curves.setdefault(buffer, {}).setdefault(str(size), {})
            for name, value in facts.items():
                kept.setdefault(name, []).append(value)
        own = curves[OWN][str(sizes[-1])]
        largest = f"at {sizes[-1]} images"
        figures = {
            "incremental": Figure(f"average incremental accuracy {largest}", own["incremental"]),
            "final": Figure(f"final accuracy {largest}", own["final"]),
            "forgetting": Figure(f"forgetting {largest}", own["forgetting"], better="lower"),
        }
        details = {"memory": self.memory, "learner": self.learner, "curves": curves}
        return Result(figures, details, notes)

    def _cell(self, subject: Subject, buffer: str, quota: int, order: int) -> dict[str, Any]:
        settings = asdict(self)
        for name in ("sizes", "references", "orders"):
            del settings[name]  # not of this cell
        inputs = settings | {"buffer": buffer, "quota": quota, "order": order}
        inputs |= {"student": subject.student}
        if self.memory == "offline" and buffer != OWN:
            inputs |= {"teachers": subject.manifest["teachers"]}
        name = f"continual-{self.memory}-{buffer}-{file_stem(subject.student)}-{quota}-{order}"
        work = partial(self._learn, subject, buffer, quota, order)
        return subject.once(name, inputs, work, shared=buffer != OWN)

    def _learn(self, subject: Subject, buffer: str, quota: int, order: int) -> dict[str, Any]:
        """Let one model go through all stages with one memory."""
        watch, source = Stopwatch(), subject.source
        classes = len(subject.classes)
        stages = stages_of(classes, self.steps, order)
        seen = torch.zeros(classes, dtype=torch.bool)
        memory = _empty(source.image_size)
        tests: list[Examples] = []
        matrix, accuracy = [], []
        model = None
        for stage in stages:
            labels = torch.tensor(stage)
            seen[labels] = True
            new = self._remembered(subject, buffer, stage, quota, order)
            if self.learner == "memory":
                memory, model = memory + new, None
                examples, replay = memory, None
            else:
                examples, replay = _of(source.train, labels), memory
            model = model or self._model(subject, order)
            default = 10 if self.learner == "replay" else 100
            protocol = Protocol(self.epochs or default, self.learning_rate)
            learn(
                model,
                examples,
                protocol,
                seed=order,
                flip=source.flip,
                memory=replay,
                seen=seen,
                description=f"stage {len(tests) + 1}/{len(stages)}, {buffer}",
            )
            if self.learner == "replay":
                memory = memory + new
            tests.append(_of(source.test, labels))
            right = [recognised(model, test, seen) for test in tests]
            matrix.append([float(own.float().mean()) for own in right])
            accuracy.append(float(torch.cat(right).float().mean()))
        return {
            "incremental": mean(accuracy),
            "final": accuracy[-1],
            "forgetting": forgetting(matrix),
            "accuracy": accuracy,
            "matrix": matrix,
            "seconds": watch.seconds,
        }

    def _remembered(
        self, subject: Subject, buffer: str, stage: Sequence[int], quota: int, order: int
    ) -> Examples:
        """Return what a buffer keeps of a stage: the first ``quota`` images of each class."""
        if self.memory == "per-stage":
            images = subject.distil(stage, None if buffer == OWN else buffer, order)
        elif buffer == OWN:
            images = subject.images[list(stage)]
        else:
            images = subject.choose(buffer, order)[list(stage)]
        labels = torch.tensor(stage).repeat_interleave(quota)
        return Examples(images[:, :quota].flatten(0, 1), labels)

    def _model(self, subject: Subject, order: int) -> Classifier:
        source = subject.source
        average, spread = source.mean_std
        return build(
            subject.student,
            len(subject.classes),
            source.image_size,
            mean=average,
            std=spread,
            seed=order,
        ).to(subject.device)


def _of(images: ImageSet, labels: torch.Tensor) -> Examples:
    chosen = torch.isin(images.labels, labels).nonzero().flatten()
    return Examples(images.pixels(chosen).cpu(), images.labels[chosen])


def _empty(size: int) -> Examples:
    return Examples(torch.empty(0, 3, size, size, dtype=torch.uint8), torch.empty(0).long())


def _notes(evaluation: Continual, sizes: Sequence[int], subject: Subject) -> list[str]:
    classes = len(subject.classes)
    notes = [
        "Offline memory: the teachers that distilled it saw the classes of later stages too."
        if evaluation.memory == "offline"
        else "Per-stage memory: teachers and distillation saw the classes of one stage only."
    ]
    left = [size for size in evaluation.sizes if size not in sizes]
    if left and sizes:
        notes.append(
            f"Left out, as the set has {subject.ipc} images of each of {classes} classes: "
            f"{', '.join(map(str, left))} images."
        )
    if not sizes:
        notes.append(f"None of the sizes fits; measured at the set's own, {classes * subject.ipc}.")
    smaller = [size for size in sizes if size // classes < subject.ipc]
    if smaller:
        notes.append("A smaller memory is the first images of each class, not a set of its own.")
    return notes
