"""The pictures of the report: the gallery, and how single images came about."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

from reta.reporting.pictures import Picture, embed
from reta.reporting.reading import Run

# A page of ten classes stays below 2 MB: this many bytes of pictures, a third more in base64.
PICTURE_BYTES = 1_250_000
_GALLERY_BYTES = 800_000
# A page of a thousand classes is larger, but bounded too.
_MOST_GALLERY_BYTES = 3_000_000
_BYTES_PER_CLASS = 8_000
_MOST_TILES = 2_000
_FILM_ROWS = 3
_FILM_CLASSES = 20


@dataclass(frozen=True)
class Shot:
    """One picture with the words that go with it, and the real image blended into it last."""

    picture: Picture
    alt: str
    caption: str
    anchor: Picture | None = None
    anchor_caption: str = ""


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
    def anchored(self) -> bool:
        """Whether real images are shown beside the synthetic ones."""
        return any(shot.anchor for shelf in self.shelves for shot in shelf.shots)

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
        pictures = (picture for shot in shots for picture in (shot.picture, shot.anchor) if picture)
        return sum(len(picture.source) * 3 // 4 for picture in pictures)


def gallery(
    run: Run, per_class: int = 10, budget: int | None = None, *, anchors: bool = True
) -> Gallery | None:
    """Return the first images of every class, or None where there are none.

    The more classes there are, the fewer images of each are shown, and the smaller.

    Args:
        run: what to show.
        per_class: at most this many images of each class.
        budget: bytes all pictures together may take; by default as the number of classes asks for.
        anchors: show the real image blended in last beside each.
    """
    count = len(run.classes)
    more = _BYTES_PER_CLASS * max(0, count - 20)
    budget = budget or min(_GALLERY_BYTES + more, _MOST_GALLERY_BYTES)
    per_class = max(1, min(per_class, _MOST_TILES // max(count, 1)))
    labels = range(count)[:_MOST_TILES]
    paths = {label: run.image_paths(label) for label in labels}
    total = sum(min(len(found), per_class) for found in paths.values())
    if not total:
        return None
    anchored = anchors and any(facts.get("connections") for facts in run.recoveries)
    allowance = budget // (2 * total if anchored else total)
    shelves = [
        Shelf(label, run.classes[label], _shots(run, label, per_class, allowance, anchored))
        for label in labels
    ]
    reduced = any(shot.picture.reduced for shelf in shelves for shot in shelf.shots)
    return Gallery(shelves, count, max(map(len, paths.values())), reduced)


def _shots(run: Run, label: int, per_class: int, allowance: int, anchored: bool) -> list[Shot]:
    name = run.classes[label]
    real = last_anchors(run, label) if anchored else []
    shots = []
    for index, (path, image) in enumerate(run.images(label, per_class)):
        alt = f"Synthetic image {index + 1} of class {name}"
        caption = f"{name}, image {index + 1} · {path.relative_to(run.path).as_posix()}"
        shot = Shot(embed(image, allowance), alt, caption)
        if index < len(real):
            cell, number = real[index]
            words = f"the real image blended in last (training image {number})"
            shot = replace(shot, anchor=embed(cell, allowance), anchor_caption=words)
        shots.append(shot)
    return shots


def last_anchors(run: Run, label: int) -> list[tuple[Image.Image, int]]:
    """Return the real image last blended into each image of a class, and its number.

    As many as the evolution sheet has rows; none where nothing was blended in.
    """
    sheet, layout, chosen = run.history(label), run.layout(label), run.anchors(label)
    if sheet is None or layout is None or not chosen:
        return []
    columns = [str(name) for name in layout["columns"]]
    places = [place for place, name in enumerate(columns) if name.startswith("anchor")]
    side = int(layout["cell"])
    if not places:
        return []
    left = places[-1] * side
    rows = min(sheet.height // side, len(chosen[-1]))
    return [
        (sheet.crop((left, row * side, left + side, row * side + side)), chosen[-1][row])
        for row in range(rows)
    ]


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


def spread_out(count: int, most: int) -> list[int]:
    """Return at most so many numbers below ``count``, evenly spread and in order."""
    return sorted({index * count // min(count, most) for index in range(min(count, most))})


def films(run: Run, budget: int, classes: int = _FILM_CLASSES) -> list[Film]:
    """Return how the first images of each class came about, as many as the budget allows.

    Args:
        run: what to show.
        budget: bytes all pictures together may take; one image per class is always shown.
        classes: at most this many classes, evenly spread.
    """
    sheets = [
        (Film(label, run.classes[label]), sheet, layout)
        for label in spread_out(len(run.classes), classes)
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
