"""What a trained network was trained to do, kept with its weights and compared at every load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reta.errors import DataError
from reta.models.architectures import build
from reta.models.classifier import Classifier, freeze
from reta.storage import atomic_write
from reta.tensors import read_tensors, tensor_bytes

Triple = tuple[float, float, float]

_KEYS = ("architecture", "classes", "image_size", "mean", "std")


@dataclass(frozen=True)
class Task:
    """What a network is shown and what it answers.

    Attributes:
        classes: names, in the order of the logits.
        image_size: side of the images in pixels.
        mean: per channel, of images in [0, 1], that normalisation subtracts.
        std: per channel, likewise, that it divides by.
    """

    classes: tuple[str, ...]
    image_size: int
    mean: Triple
    std: Triple

    def under(self, model: Classifier) -> Task:
        """Return the same task with a model's own normalisation."""
        return replace(self, mean=_triple(model.mean), std=_triple(model.std))

    def check(self, where: str, facts: Mapping[str, Any]) -> None:
        """Compare with what was written beside weights or labels, as far as it says.

        A teacher that was trained elsewhere (it names its origin) keeps its own normalisation.

        Raises:
            DataError: naming both sides of the first difference.
        """
        if "classes" in facts and tuple(facts["classes"]) != self.classes:
            raise DataError(f"{where}: {difference(facts['classes'], self.classes)}")
        if facts.get("image_size", self.image_size) != self.image_size:
            raise DataError(
                f"{where}: made for images of {facts['image_size']} px, these have "
                f"{self.image_size} px; use --image-size {facts['image_size']}"
            )
        if "origin" in facts:
            return
        for name, own in (("mean", self.mean), ("std", self.std)):
            other = facts.get(name, own)
            if any(abs(a - b) > 1e-6 for a, b in zip(other, own, strict=True)):
                raise DataError(
                    f"{where}: normalised with {name} {_rounded(other)}, here it is "
                    f"{_rounded(own)}; the images or their normalisation changed"
                )


def difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Return in words how two lists of class names differ, naming both."""
    if len(theirs) != len(ours):
        return (
            f"answers {len(theirs)} classes ({_some(theirs)}), the data has {len(ours)} "
            f"({_some(ours)})"
        )
    place = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if len(set(pair)) > 1)
    order = " in another order" if sorted(theirs) == sorted(ours) else ""
    return (
        f"taught other classes{order}: number {place} is {theirs[place]!r}, in the data "
        f"{ours[place]!r}"
    )


def model_bytes(model: Classifier, task: Task, **facts: Any) -> bytes:
    """Return a safetensors file of a model, its task and further facts."""
    own = {"architecture": model.name, **asdict(task)}
    return tensor_bytes(model.state_dict(), own | facts)


def save(model: Classifier, path: Path | str, task: Task) -> None:
    """Write a model so that it can be a teacher: ``--teachers FILE.safetensors``."""
    atomic_write(Path(path), model_bytes(model, task))


def read(path: Path | str, task: Task | None = None) -> tuple[Classifier, Task]:
    """Return the frozen model in a file written by reta, such as a student, and its task.

    Args:
        path: a safetensors file with architecture, classes, image size and normalisation.
        task: what it must have been trained to do.

    Raises:
        DataError: if the file is damaged, says too little, or was made for another task.
    """
    tensors, facts = read_tensors(Path(path))
    if missing := [key for key in _KEYS if key not in facts]:
        raise DataError(
            f"{path}: does not say its {', '.join(missing)}; say it once: reta adopt {path} …"
        )
    if task is not None:
        task.check(str(path), facts)
    first, second = (_triple(facts[key]) for key in ("mean", "std"))
    own = Task(tuple(facts["classes"]), int(facts["image_size"]), first, second)
    model = build(facts["architecture"], len(own.classes), own.image_size, mean=first, std=second)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{path}: not the weights of a {facts['architecture']}: {error}") from error
    return freeze(model), own


def _triple(values: Any) -> Triple:
    first, second, third = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    return first, second, third


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _rounded(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
