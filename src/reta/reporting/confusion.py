"""Which classes the students take for which."""

from __future__ import annotations

from collections import defaultdict

from markupsafe import Markup

from reta.reporting import words
from reta.reporting.pictures import Picture, heat_map
from reta.reporting.reading import Run
from reta.reporting.svg import WIDTH, figure, shorten, svg, tag, text

_MOST_CELLS = 24
_MOST_PAIRS = 20


def shares(run: Run) -> dict[tuple[int, int], tuple[float, int, int]]:
    """Return by (true, predicted) class the share of the true class, the images, and all of it."""
    rows = (run.metrics or {}).get("confusion") or []
    whole: dict[int, int] = defaultdict(int)
    for true, _, count in rows:
        whole[int(true)] += int(count)
    known = len(run.classes)
    return {
        (int(true), int(taken)): (count / whole[int(true)], int(count), whole[int(true)])
        for true, taken, count in rows
        if max(true, taken) < known and whole[int(true)]
    }


def mistakes(run: Run) -> list[tuple[str, str, str]]:
    """Return the most frequent mistakes: the true class, what it was taken for, how often."""
    found = sorted(
        (
            (share, true, taken, count, whole)
            for (true, taken), (share, count, whole) in shares(run).items()
            if true != taken
        ),
        reverse=True,
    )
    return [
        (run.classes[true], run.classes[taken], f"{words.percent(share)} ({count} of {whole})")
        for share, true, taken, count, whole in found[:_MOST_PAIRS]
    ]


def matrix_picture(run: Run) -> Picture | None:
    """Return the confusion matrix of many classes as a picture, a pixel per pair."""
    known, count = shares(run), len(run.classes)
    if not known or count <= _MOST_CELLS:
        return None
    values = [[0.0] * count for _ in range(count)]
    for (true, taken), (share, _, _) in known.items():
        values[true][taken] = share
    return heat_map(values, 1.0)


def matrix_chart(run: Run) -> Markup:
    """Return the confusion matrix of a few classes as a drawing."""
    known, count = shares(run), len(run.classes)
    if not known or count > _MOST_CELLS:
        return Markup("")
    left = 12 + 6.2 * max(min(len(name), 14) for name in run.classes)
    side = min((WIDTH - left) / count, 34.0)
    top = left - 6 if max(map(len, run.classes)) > 2 else 20.0
    parts = []
    for label, name in enumerate(run.classes):
        y, x = top + (label + 0.5) * side, left + (label + 0.5) * side
        parts.append(text(left - 6, y + 4, shorten(name, 14), "end", "name"))
        if top > 20:
            place = f"translate({x + 4:.1f} {top - 6:.1f}) rotate(-60)"
            parts.append(tag("text", shorten(name, 14), transform=place, class_="name"))
        else:
            parts.append(text(x, top - 6, name, "middle", "name"))
    for (true, taken), (share, cell, whole) in sorted(known.items()):
        x, y = left + taken * side, top + true * side
        told = f"{run.classes[true]} taken for {run.classes[taken]}: {cell} of {whole}"
        parts.append(_cell(x, y, side, share, told, right=true == taken))
    box = {"x": left, "y": top, "width": side * count, "height": side * count}
    parts.append(tag("rect", class_="outline", **box))
    told = "; ".join(f"{true} taken for {taken}: {share}" for true, taken, share in mistakes(run))
    drawing = svg("Confusion matrix", told or "No mistakes.", top + side * count + 8, *parts)
    note = "Rows: the true class. Columns: what the students said. In per cent of the row."
    return figure("Confusion by class", note, [], drawing)


def _cell(x: float, y: float, side: float, share: float, told: str, *, right: bool) -> Markup:
    box = {"x": x + 0.5, "y": y + 0.5, "width": side - 1, "height": side - 1}
    colour = tag(
        "rect",
        tag("title", told),
        class_=f"cell s{0 if right else 1}",
        fill_opacity=f"{0.12 + 0.88 * share:.2f}",
        **box,
    )
    if side < 20 or share < 0.005:
        return colour
    kind = "strong" if share > 0.5 else "name"
    return (
        Markup("") + colour + text(x + side / 2, y + side / 2 + 4, f"{100 * share:.0f}", kind=kind)
    )
