"""Class-incremental learning with a fixed memory (paper, Fig. 6): the distilled set as replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any, Literal

import torch

from reta.data.images import ImageSet
from reta.errors import UsageError
from reta.evaluation.learners import Examples, learn, recognised
from reta.evaluation.result import Curve, Figure, Result
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

    Classes come in stages; a class enters the memory when its stage ends. The learner is a model
    that goes on from stage to stage, each batch half new real images and half memory (``replay``);
    or one trained anew after each stage on the memory alone (``memory``, the protocol of DM and
    GDumb). All buffers have hard labels; only classes seen so far are told apart. Values are one
    per class order.

    Average incremental accuracy is the mean over stages of the accuracy on the test images of all
    classes seen so far; final accuracy is that of the last stage; forgetting is Chaudhry's.

    Attributes:
        steps: stages.
        sizes: images in the memory, M, over all classes. Sizes that need more images per class
            than the set has are left out, and the set's own size is used if none fits, unless
            sets are distilled ``per-size``.
        quota: images of each of C classes: ``fixed`` keeps M / C from its stage to the end;
            ``shrinking`` always fills the memory, with M / (classes seen so far), so older classes
            give way (iCaRL).
        memory: ``offline`` takes the run, whose teacher saw all classes (as the paper does);
            ``per-stage`` trains teachers and distils anew for every stage, from its classes alone.
        sets: ``once`` fills a smaller memory with the first images of each class; ``per-size``
            distils a set of just as many images per class, for every size and quota. Real images
            of earlier stages are gone per stage: what remains of a class then is always the first
            images of what was distilled in its stage.
        references: other buffers: methods that only choose real images, such as herding.
        learner: ``replay`` or ``memory``.
        orders: how many class orders, each with a model seed of its own.
        epochs: passes over a stage's images; by default 10 for replay, 100 for memory.
        learning_rate: of AdamW, falling to zero by a cosine in each stage.
    """

    steps: int = 5
    sizes: tuple[int, ...] = (200, 400, 600, 800, 1000)
    quota: Literal["fixed", "shrinking"] = "fixed"
    memory: Literal["offline", "per-stage"] = "offline"
    sets: Literal["once", "per-size"] = "once"
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
        if not self.sizes or min(self.sizes) < 1:
            raise UsageError(f"continual.sizes is {self.sizes}; name sizes of at least 1 image")

    def per_class(self, size: int, seen: int, classes: int) -> int:
        """Return how many images of each class a memory holds when some classes were seen."""
        return size // (classes if self.quota == "fixed" else seen)

    def measure(self, subject: Subject) -> Result:
        """Return the measures of every buffer at every size."""
        classes = len(subject.classes)
        if classes < self.steps:
            raise UsageError(
                f"{classes} classes make no {self.steps} stages; lower continual.steps"
            )
        most = None if self.sets == "per-size" else subject.ipc
        sizes = [n for n in self.sizes if n >= classes and (most is None or n // classes <= most)]
        notes = _notes(self, sizes, subject)
        sizes = sorted(set(sizes)) or [classes * subject.ipc]
        cells = [
            (buffer, size, order)
            for buffer in (OWN, *self.references)
            for size in sizes
            for order in range(self.orders)
        ]
        curves: dict[str, dict[str, dict[str, list[Any]]]] = {}
        for buffer, size, order in track(cells, "continual learning", len(cells)):
            facts = self._cell(subject, buffer, size, order)
            kept = curves.setdefault(buffer, {}).setdefault(str(size), {})
            for name, value in facts.items():
                kept.setdefault(name, []).append(value)
        details = {"memory": self.memory, "learner": self.learner, "curves": curves}
        return Result(_figures(curves[OWN], sizes), details, notes)

    def _cell(self, subject: Subject, buffer: str, size: int, order: int) -> dict[str, Any]:
        settings = asdict(self)
        for name in ("sizes", "references", "orders"):
            del settings[name]  # not of this cell
        inputs = settings | {"buffer": buffer, "size": size, "order": order}
        inputs |= {"student": subject.student, "ipc": subject.ipc}
        if self.memory == "offline" and buffer != OWN:
            inputs |= {"teachers": subject.manifest["teachers"]}
        name = f"continual-{self.memory}-{buffer}-{file_stem(subject.student)}-{size}-{order}"
        work = partial(self._learn, subject, buffer, size, order)
        return subject.once(name, inputs, work, shared=buffer != OWN)

    def _learn(self, subject: Subject, buffer: str, size: int, order: int) -> dict[str, Any]:
        """Let one model go through all stages with one memory."""
        watch, source = Stopwatch(), subject.source
        classes = len(subject.classes)
        stages = stages_of(classes, self.steps, order)
        seen = torch.zeros(classes, dtype=torch.bool)
        memory = _empty(source.image_size)
        tests: list[Examples] = []
        matrix, accuracy = [], []
        model = None
        for number, stage in enumerate(stages, 1):
            labels = torch.tensor(stage)
            seen[labels] = True
            after = self._filled(subject, buffer, stages[:number], size, order)
            if self.learner == "memory":
                model, examples, replay = None, after, None
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
                description=f"stage {number}/{len(stages)}, {buffer}",
            )
            memory = after
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

    def _filled(
        self, subject: Subject, buffer: str, stages: Sequence[Sequence[int]], size: int, order: int
    ) -> Examples:
        """Return the memory after some stages."""
        classes, seen, memory = len(subject.classes), 0, _empty(subject.source.image_size)
        now = self.per_class(size, sum(map(len, stages)), classes)
        for stage in stages:
            seen += len(stage)
            entered = self.per_class(size, seen, classes)
            made = {"offline": now, "per-stage": entered}[self.memory]
            ipc = made if self.sets == "per-size" else subject.ipc
            images = self._images(subject, buffer, stage, ipc, order)[:, :now]
            labels = torch.tensor(stage).repeat_interleave(images.shape[1])
            memory = memory + Examples(images.flatten(0, 1), labels)
        return memory

    def _images(
        self, subject: Subject, buffer: str, stage: Sequence[int], ipc: int, order: int
    ) -> torch.Tensor:
        """Return a buffer's images of the classes of a stage, ``(classes, ipc, 3, s, s)`` uint8."""
        if self.memory == "per-stage":
            return subject.distil(tuple(stage), None if buffer == OWN else buffer, order, ipc)
        whole = subject.resized(ipc) if buffer == OWN else subject.choose(buffer, order, ipc)
        return whole[list(stage)]

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


def _figures(own: Mapping[str, Mapping[str, list[Any]]], sizes: Sequence[int]) -> dict[str, Figure]:
    """Return the measures at the largest size, then the curve over the smaller ones."""
    last = sizes[-1]
    title = "average incremental accuracy"
    figures = {}
    for size in reversed(sizes):
        name = "incremental" if size == last else f"incremental_{size}"
        values = own[str(size)]["incremental"]
        curve = Curve(title, "images in memory", size)
        figures[name] = Figure(f"{title} at {size} images", values, curve=curve)
        if size == last:
            figures["final"] = Figure(f"final accuracy at {size} images", own[str(size)]["final"])
            figures["forgetting"] = Figure(
                f"forgetting at {size} images", own[str(size)]["forgetting"], better="lower"
            )
    return figures


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
    if evaluation.sets == "per-size":
        notes.append("For each size a set of just as many images per class was distilled.")
    elif smaller:
        notes.append("A smaller memory is the first images of each class, not a set of its own.")
    first = -(-classes // evaluation.steps)
    if evaluation.quota == "shrinking":
        notes.append("The memory is always full: images per class shrink as classes come.")
        if evaluation.sets == "once" and max(sizes, default=0) // first > subject.ipc:
            notes.append("After the first stages it is not, as the set has too few images.")
    return notes
