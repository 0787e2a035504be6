"""Accuracy under common corruptions (paper, Table 4): made on the fly, or read from -C folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np
import torch

from reta.data.images import DecodedImages, ImageSet
from reta.data.intake import SUFFIXES, read_image, square
from reta.errors import DataError, UsageError, unknown
from reta.evaluation.corruptions import Bytes, corrupt, resaved
from reta.evaluation.result import Figure, Result
from reta.evaluation.severities import CATEGORIES, NAMES, table_for
from reta.evaluation.subject import Subject
from reta.models import file_stem
from reta.progress import track
from reta.training import accuracy

_JPEG = 85  # of the published 224 px files
_CIFAR_IMAGES = 10_000

Reader = Callable[[str, int], ImageSet]


@dataclass(frozen=True)
class Corruptions:
    """Accuracy under 15 corruptions at 5 severities (Table 4).

    The corruptions are made on the fly, each image always in the same way, with the official
    parameters of the nearest size (32, 64 or 224 px); or read from CIFAR-10-C, CIFAR-100-C or
    ImageNet-C where those lie on the disk. The score is the mean over all of them.

    Attributes:
        folder: of the official files (``gaussian_noise.npy`` … and ``labels.npy``, or
            ``gaussian_noise/1/CLASS/*``); made on the fly if empty.
        frost: folder of frost photographs; a procedural texture stands in if empty.
        names: which corruptions; all 15 if empty.
        severities: which of 1 to 5.
        per_class: most test images of each class, the first ones; all if 0.
        resave: whether corrupted images are saved as JPEG of quality 85 once more, as the
            published 224 px files were; auto does so at exactly 224 px.
    """

    folder: str = ""
    frost: str = ""
    names: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    per_class: int = 0
    resave: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in NAMES:
                raise unknown("corruption", name, NAMES)
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise UsageError(f"severities are {self.severities}; choose from 1 to 5")

    def measure(self, subject: Subject) -> Result:
        """Return the mean accuracy of the students, and of each corruption and severity."""
        size = subject.source.image_size
        clean = _first(subject.source.test, self.per_class)
        table = table_for(size)
        photos = _photographs(self.frost)
        again = self.resave == "always" or (self.resave == "auto" and size == 224)
        if self.folder:
            read = _official(Path(self.folder), subject.classes, size, self.per_class)
        else:
            read = _made(clean, table, photos, again)
        inputs = asdict(self) | {"students": [one.digest for one in subject.students]}
        del inputs["names"]  # each has a unit of its own
        names = self.names or NAMES

        def severities(name: str) -> dict[str, list[float]]:
            return {str(one): _accuracies(subject, read(name, one)) for one in self.severities}

        rows = {
            name: subject.once(
                f"corruption-{name}-{file_stem(subject.student)}", inputs, partial(severities, name)
            )
            for name in track(names, "corruptions", len(names))
        }
        plain = subject.once(
            f"corruption-none-{file_stem(subject.student)}",
            inputs,
            lambda: {"clean": _accuracies(subject, clean)},
        )["clean"]
        return _result(rows, plain, self._notes(table, size, again, bool(photos)), len(clean))

    def _notes(self, table: int, size: int, again: bool, photos: bool) -> list[str]:
        if self.folder:
            return [f"Read from the published files in {Path(self.folder).name}."]
        notes = [f"Made on the fly with the official parameters for {table} px images."]
        if table != size:
            notes.append(f"Images have {size} px, for which there are none; {table} is nearest.")
        if not photos and "frost" in (self.names or NAMES):
            notes.append(
                "Frost is a procedural texture, not the authors' photographs, so its accuracy is "
                "not comparable with published ones; `--set corruptions.frost=FOLDER` takes photos."
            )
        if again:
            notes.append(
                "Saved as JPEG of quality 85 after the corruption, as the published files."
            )
        if self.per_class:
            notes.append(f"Measured on the first {self.per_class} test images of each class.")
        return notes


def _accuracies(subject: Subject, images: ImageSet) -> list[float]:
    return [accuracy(student.model, images)[0] for student in subject.students]


def _result(
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    clean: Sequence[float],
    notes: Sequence[str],
    images: int,
) -> Result:
    """Return the table and its means; every mean is over severities first."""
    students = range(len(clean))

    def over(names: Sequence[str], student: int) -> float:
        return mean(mean(values[student] for values in rows[name].values()) for name in names)

    means = [over(list(rows), student) for student in students]
    figures = {
        "corrupted": Figure("accuracy under corruption", means),
        "clean": Figure("accuracy on the same clean images", list(clean), better=None),
    }
    for category, names in CATEGORIES.items():
        if present := [name for name in names if name in rows]:
            figures[category] = Figure(category, [over(present, one) for one in students])
    by_name = {name: [over([name], one) for one in students] for name in rows}
    details = {"corruptions": dict(rows), "by_corruption": by_name, "images": images}
    return Result(figures, details, notes)


def _first(images: ImageSet, per_class: int) -> ImageSet:
    """Return the first images of each class; all if ``per_class`` is 0."""
    if not per_class:
        return images
    members = [images.of_class(label)[:per_class] for label in range(len(images.classes))]
    chosen = torch.cat(members).sort().values
    return DecodedImages(images.pixels(chosen).cpu(), images.labels[chosen], images.classes)


def _made(clean: ImageSet, table: int, photos: Sequence[Bytes], again: bool) -> Reader:
    """Return how to make the corrupted images; each is keyed by its place in the test set."""

    def read(name: str, severity: int) -> ImageSet:
        pixels = clean.pixels(torch.arange(len(clean))).cpu().permute(0, 2, 3, 1).numpy()
        changed = np.empty_like(pixels)
        for index, image in enumerate(pixels):
            one = corrupt(image, name, severity, index, table, photos)
            changed[index] = resaved(one, _JPEG) if again else one
        return _image_set(changed, clean.labels, clean.classes)

    return read


def _image_set(pixels: Bytes, labels: torch.Tensor, classes: tuple[str, ...]) -> ImageSet:
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return DecodedImages(images, labels, classes)


def _official(folder: Path, classes: tuple[str, ...], size: int, per_class: int) -> Reader:
    """Return how to read published corrupted files."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of corrupted images")
    if (folder / "labels.npy").is_file():
        return _arrays(folder, classes, size, per_class)
    return _tree(folder, classes, size, per_class)


def _arrays(folder: Path, classes: tuple[str, ...], size: int, per_class: int) -> Reader:
    """Read CIFAR-10-C or CIFAR-100-C: five times 10,000 images, one severity after the other."""
    labels = np.load(folder / "labels.npy", allow_pickle=False)[:_CIFAR_IMAGES].astype(np.int64)
    if len(classes) > labels.max() + 1:
        raise DataError(f"{folder}: has {labels.max() + 1} classes, the run {len(classes)}")
    # A run of fewer classes has the first ones: `--classes N` takes them in label order.
    kept = np.flatnonzero(labels < len(classes))

    def read(name: str, severity: int) -> ImageSet:
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise DataError(f"{path}: not found; download it, or name fewer corruptions")
        every = np.load(path, mmap_mode="r", allow_pickle=False)
        if every.shape != (5 * len(labels), 32, 32, 3):
            raise DataError(f"{path}: shape {every.shape}, not {(5 * len(labels), 32, 32, 3)}")
        if size != 32:
            raise DataError(f"{path}: 32 px images for a run of {size} px")
        pixels = np.asarray(every[(severity - 1) * len(labels) + kept])
        whole = _image_set(pixels, torch.from_numpy(labels[kept]), classes)
        return _first(whole, per_class)

    return read


def _tree(folder: Path, classes: tuple[str, ...], size: int, per_class: int) -> Reader:
    """Read ImageNet-C: a folder per corruption, severity and class."""

    def read(name: str, severity: int) -> ImageSet:
        found = sorted(folder.glob(f"**/{name}/{severity}"))
        if not found:
            raise DataError(f"{folder}: no {name}/{severity} in it")
        pixels: list[Bytes] = []
        labels: list[int] = []
        for label, class_name in enumerate(classes):
            paths = sorted(path for path in (found[0] / class_name).glob("*") if path.is_file())
            if not paths:
                raise DataError(f"{found[0] / class_name}: no images")
            for path in paths[: per_class or None]:
                pixels.append(square(read_image(path), size))
                labels.append(label)
        return _image_set(np.stack(pixels), torch.tensor(labels), classes)

    return read


def _photographs(folder: str) -> list[Bytes]:
    """Return the photographs of frost in a folder."""
    if not folder:
        return []
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"{folder}: no photographs of frost in it")
    return [read_image(path) for path in paths]
