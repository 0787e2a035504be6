"""What the report reads from a run folder; every file but the manifest may be missing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from reta.errors import DataError
from reta.storage import RunFolder, read_json

Facts = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run as the report sees it.

    Attributes:
        path: the run folder.
        manifest: what was distilled from what, where and when.
        metrics: accuracy and cost, once a model was trained.
        geometry: contraction gap, Betti curves and diagrams, once measured.
        teachers: facts of each teacher, in committee order.
        recoveries: facts of each block of classes.
        config: the configuration as written.
        evaluations: the results of ``reta evaluate`` by name.
    """

    path: Path
    manifest: Facts
    metrics: Facts | None
    geometry: Facts | None
    teachers: list[Facts]
    recoveries: list[Facts]
    config: str | None
    evaluations: dict[str, Facts] = field(default_factory=dict)

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes in label order."""
        return [str(name) for name in self.manifest.get("classes", [])]

    @cached_property
    def folders(self) -> list[str]:
        """The folder name of each class; one that would leave the run folder is emptied."""
        names = [str(name) for name in self.manifest.get("folders", self.classes)]
        return [name if Path(name).name == name else "" for name in names]

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(self.manifest.get("ipc", 0))

    @property
    def data(self) -> Facts:
        """The facts of the real data."""
        return part(self.manifest, "data")

    @property
    def shown(self) -> str:
        """The folder as one would type it after a command."""
        return shlex.quote(str(self.path))

    def images(self, label: int, limit: int | None = None) -> Iterator[tuple[Path, Image.Image]]:
        """Yield the synthetic images of a class in order, each with its path."""
        for path in self.image_paths(label)[:limit]:
            yield path, open_image(path)

    def image_paths(self, label: int) -> list[Path]:
        """The image files of a class, ``2.png`` before ``10.png``."""
        folder = self.folders[label] if label < len(self.folders) else ""
        if not folder:
            return []
        paths = (self.path / "images" / folder).glob("*.png")
        return sorted(paths, key=lambda path: (len(path.stem), path.stem))

    def history(self, label: int) -> Image.Image | None:
        """The evolution sheet of a class: a row per image, a column per moment."""
        folder = self.folders[label] if label < len(self.folders) else ""
        path = self.path / "history" / f"{folder}.png"
        return open_image(path) if folder and path.is_file() else None

    def anchors(self, label: int) -> list[list[int]]:
        """Which real images were blended into the images of a class, connection by connection."""
        for facts in self.recoveries:
            labels = facts.get("labels", [])
            if label in labels:
                place, connections = labels.index(label), len(facts.get("connections") or [])
                chosen = facts.get("anchors") or []
                # The first may be the images the class started from.
                return [step[place] for step in chosen[len(chosen) - connections :]]
        return []

    def layout(self, label: int) -> Facts | None:
        """How the evolution sheet of a class is laid out."""
        for facts in self.recoveries:
            if label in facts.get("labels", []) and facts.get("history"):
                return dict(facts["history"])
        return None


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: if it is no finished run, or a file of it is damaged.
    """
    folder = RunFolder(path)
    config = path / "config.yaml"
    return Run(
        path=path,
        manifest=folder.manifest(),
        metrics=_optional(path / "metrics.json"),
        geometry=_optional(path / "geometry.json"),
        teachers=_facts(path, "teacher-*.json"),
        recoveries=_facts(path, "recover-*.json"),
        config=config.read_text("utf-8", errors="replace") if config.is_file() else None,
        evaluations={
            found.stem: read_object(found) for found in sorted(path.glob("evaluations/*.json"))
        },
    )


def read_object(path: Path) -> Facts:
    """Read a JSON object.

    Raises:
        DataError: if the file is missing, damaged or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object; run `reta verify {path.parent}`")
    return value


def _optional(path: Path) -> Facts | None:
    return read_object(path) if path.is_file() else None


def _facts(path: Path, pattern: str) -> list[Facts]:
    records = sorted((path / "units").glob(pattern))
    return [part(read_object(record), "facts") for record in records]


def open_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        DataError: if the file is no readable image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        folder = path.parent.parent.parent
        raise DataError(
            f"{path}: not readable as an image ({error}); run `reta verify {folder}`"
        ) from error


def part(facts: Facts | None, name: str) -> Facts:
    """Return a nested object, or an empty one."""
    value = (facts or {}).get(name)
    return value if isinstance(value, dict) else {}


def figure(facts: Facts | None, name: str) -> float | None:
    """Return a finite number, or None if it is missing."""
    value = (facts or {}).get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers that are there, or None."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
