"""Which real images were blended into the synthetic ones, and how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from reta.reporting import words
from reta.reporting.album import Shot, spread_out
from reta.reporting.charts import Row, dot_chart
from reta.reporting.pictures import embed
from reta.reporting.reading import Run
from reta.reporting.svg import whole_percent

_CLASSES, _SHOWN, _MOST_BARS = 20, 8, 20
_ALLOWANCE = 2_000


@dataclass(frozen=True)
class Taken:
    """One real image: its picture where the run kept one, and how often it was blended in."""

    shot: Shot | None
    number: int
    times: int


@dataclass(frozen=True)
class Anchors:
    """The real images blended into one class.

    Attributes:
        label: of the class.
        name: of the class.
        distinct: how many different ones.
        blends: how many times one was blended in.
        taken: the most used ones.
    """

    label: int
    name: str
    distinct: int
    blends: int
    taken: list[Taken]


def _counts(run: Run, label: int) -> Counter[int]:
    return Counter(number for step in run.anchors(label) for number in step)


def most_used(run: Run) -> list[Anchors]:
    """Return the anchors of some classes, evenly spread, the most used first."""
    found = []
    for label in spread_out(len(run.classes), _CLASSES):
        counts = _counts(run, label)
        if counts:
            known = cells(run, label)
            taken = [
                Taken(_shot(known.get(number), number, times), number, times)
                for number, times in counts.most_common(_SHOWN)
            ]
            found.append(
                Anchors(label, run.classes[label], len(counts), sum(counts.values()), taken)
            )
    return found


def _shot(cell: Image.Image | None, number: int, times: int) -> Shot | None:
    if cell is None:
        return None
    caption = f"training image {number}, blended in {words.plural(times, 'time')}"
    return Shot(embed(cell, _ALLOWANCE), f"Real {caption}", caption[0].upper() + caption[1:])


def cells(run: Run, label: int) -> dict[int, Image.Image]:
    """Return the pictures of the anchors that the evolution sheet of a class shows."""
    sheet, layout = run.history(label), run.layout(label)
    if sheet is None or layout is None:
        return {}
    side = int(layout["cell"])
    found: dict[int, Image.Image] = {}
    for column, moment in enumerate(map(str, layout["columns"])):
        kind, _, step = moment.partition(" ")
        if kind != "anchor":
            continue
        chosen = run.anchors(label)[int(step) - 1]
        for row, number in enumerate(chosen[: sheet.height // side]):
            box = (column * side, row * side, column * side + side, row * side + side)
            found.setdefault(number, sheet.crop(box))
    return found


def reuse_chart(run: Run) -> Markup:
    """Return, by class, the share of blends that used a real image of their own."""
    shares = []
    for label, name in enumerate(run.classes):
        counts = _counts(run, label)
        if counts:
            blends = sum(counts.values())
            shares.append((len(counts) / blends, f"{len(counts)} of {blends}", name))
    rows = [Row(name, share, told) for share, told, name in sorted(shares)[:_MOST_BARS]]
    more = f" The {len(rows)} lowest of {len(shares)}." if len(shares) > len(rows) else ""
    return dot_chart(
        "Different anchors by class",
        rows,
        "different anchors per blend",
        note=f"Where one real image serves many synthetic ones, they become alike.{more}",
        bars=True,
        format_x=whole_percent,
    )
