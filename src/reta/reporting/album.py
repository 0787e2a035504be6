"""The pictures of the report: the gallery, and how single images came about."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from reta.reporting.pictures import Picture, embed
from reta.reporting.reading import Run

# A page of ten classes stays below 2 MB: this many bytes of pictures, a third more in base64.
PICTURE_BYTES = 1_250_000
_GALLERY_BYTES = 800_000
_FILM_ROWS = 3


@dataclass(frozen=True)
class Shot:
    """One picture with the words that go with it."""

    picture: Picture
    alt: str
    caption: str


@dataclass(frozen=True)
class Shelf:
    """The shown images of one class."""

    label: int
    name: str
    shots: list[Shot]


@dataclass(frozen=True)
class Gallery:
    """The shown images of a run and how many there are.

    Attributes:
        shelves: one per shown class.
        classes: the number of classes in the run.
        most: the largest number of images of a shown class, shown or not.
        reduced: whether some pictures are smaller than their files.
    """

    shelves: list[Shelf]
    classes: int
    most: int
    reduced: bool

    @property
    def shown(self) -> int:
        """The largest number of images shown of a class."""
        return max((len(shelf.shots) for shelf in self.shelves), default=0)

    @property
    def extent(self) -> str:
        """Which part of the run is shown, or nothing if all of it is."""
        parts = []
        if len(self.shelves) < self.classes:
            parts.append(f"{len(self.shelves)} of {self.classes} classes")
        if self.shown < self.most:
            parts.append(f"{self.shown} of up to {self.most} images per class")
        return ", ".join(parts)

    @property
    def bytes(self) -> int:
        """The size of the pictures, before base64."""
        shots = (shot for shelf in self.shelves for shot in shelf.shots)
        return sum(len(shot.picture.source) * 3 // 4 for shot in shots)


def gallery(
    run: Run, classes: int = 20, per_class: int = 10, budget: int = _GALLERY_BYTES
) -> Gallery | None:
    """Return the first images of the first classes, or None where there are none.

    Args:
        run: what to show.
        classes: at most this many classes.
        per_class: at most this many images of each.
        budget: bytes all pictures together may take.
    """
    labels = range(min(len(run.classes), classes))
    paths = {label: run.image_paths(label) for label in labels}
    total = sum(min(len(found), per_class) for found in paths.values())
    if not total:
        return None
    shelves = []
    for label in labels:
        name = run.classes[label]
        shots = [
            Shot(
                embed(image, budget // total),
                f"Synthetic image {index} of class {name}",
                f"{name}, image {index} · {path.relative_to(run.path).as_posix()}",
            )
            for index, (path, image) in enumerate(run.images(label, per_class), 1)
        ]
        shelves.append(Shelf(label, name, shots))
    reduced = any(shot.picture.reduced for shelf in shelves for shot in shelf.shots)
    return Gallery(shelves, len(run.classes), max(map(len, paths.values())), reduced)


@dataclass(frozen=True)
class Frame:
    """One moment in the making of an image."""

    shot: Shot
    moment: str
    anchor: bool


@dataclass(frozen=True)
class Film:
    """The films of one class: a row of frames for each shown image."""

    label: int
    name: str
    rows: list[list[Frame]] = field(default_factory=list)


def films(run: Run, budget: int, classes: int = 20) -> list[Film]:
    """Return how the first images of each class came about, as many as the budget allows.

    Args:
        run: what to show.
        budget: bytes all pictures together may take; one image per class is always shown.
        classes: at most this many classes.
    """
    sheets = [
        (Film(label, run.classes[label]), sheet, layout)
        for label in range(min(len(run.classes), classes))
        if (sheet := run.history(label)) is not None and (layout := run.layout(label))
    ]
    cells = sum(len(layout["columns"]) for _, _, layout in sheets)
    for row in range(_FILM_ROWS):
        taken = []
        for film, sheet, layout in sheets:
            frames = _frames(film.name, sheet, layout, row, budget // cells)
            if frames:
                taken.append((film, frames))
        spent = sum(len(f.shot.picture.source) * 3 // 4 for _, frames in taken for f in frames)
        if row and spent > budget:
            break
        budget -= spent
        for film, frames in taken:
            film.rows.append(frames)
    return [film for film, _, _ in sheets if film.rows]


def _frames(
    name: str, sheet: Image.Image, layout: dict[str, object], row: int, allowance: int
) -> list[Frame]:
    columns, side = layout["columns"], layout.get("cell")
    if not isinstance(columns, list) or not isinstance(side, int) or side < 1:
        return []
    top = row * side
    if top + side > sheet.height:
        return []
    frames = []
    for index, moment in enumerate(map(str, columns[: sheet.width // side])):
        cell = sheet.crop((index * side, top, (index + 1) * side, top + side))
        words = f"{name}, image {row + 1}, {describe(moment)}"
        anchor = moment.startswith("anchor")
        shot = Shot(embed(cell, allowance), words, words)
        frames.append(Frame(shot, moment, anchor))
    return frames


def describe(moment: str) -> str:
    """Return the name of a column of an evolution sheet as a phrase."""
    kind, _, index = moment.partition(" ")
    phrases = {
        "start": "at the start",
        "final": "as distilled",
        "block": f"after block {index}",
        "anchor": f"the real image blended in at connection {index}",
    }
    return phrases.get(kind, moment)
