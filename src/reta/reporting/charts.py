"""Small charts as inline SVG: no script, no dependency, readable in light, dark and in print.

Colours and dashes come from the page's style sheet by class name, so a chart follows the theme.
Series differ by dash or marker as well, never by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reta.reporting.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Formatter,
    compact,
    covering,
    figure,
    frame,
    shorten,
    svg,
    tag,
    text,
    ticks,
    whole_percent,
)

_HEIGHT = 230.0
_MOST_POINTS = 300


@dataclass(frozen=True)
class Series:
    """One named line or cloud of points.

    Attributes:
        name: of the series.
        points: in order of x.
        style: 0 to 5, picks colour, dash and marker.
        errors: half the height of the error bar at each point of a line, if they have any.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class Row:
    """One row of a dot or bar chart.

    Attributes:
        name: of the row.
        value: where the mark stands.
        shown: the value in words, at the right.
        spread: half the width of the error bar.
        second: a second, hollow mark.
        style: 0 to 5, picks the colour.
        points: single results the value is the mean of, as small marks.
    """

    name: str
    value: float
    shown: str
    spread: float | None = None
    second: float | None = None
    style: int = 0
    points: Sequence[float] = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    names: tuple[str, str],
    *,
    note: str = "",
    marks: Sequence[float] = (),
    steps: bool = False,
    wide: bool = False,
    format_y: Formatter = compact,
) -> Markup:
    """Draw lines over shared axes.

    Args:
        title: what is shown.
        series: the lines; those without points are left out.
        names: of the two axes.
        note: a sentence on how to read it.
        marks: places on the horizontal axis to mark with a dotted line.
        steps: draw counts, which change in steps.
        wide: use a logarithmic scale if the values span more than a factor of 50.
        format_y: how to write values.
    """
    series = [line for line in series if line.points]
    if not series:
        return Markup("")
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    ys += [end for line in series for _, *ends in _ends(line) for end in ends]
    log = wide and min(ys) > 0 and max(ys) > 50 * min(ys)
    low, high = covering(ys, log=log, floor=0.0)
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT - 6)
    up = Axis(low, high, _HEIGHT - BOTTOM, TOP, log)
    draw = _stairs if steps else _line
    lines = [
        tag("path", d=draw(line.points, across, up), class_=f"line s{line.style}")
        for line in series
    ]
    dotted = [
        tag("path", d=f"M{across(mark):.1f} {TOP:.0f}V{up.start:.0f}", class_="mark")
        for mark in marks
        if across.low <= mark <= across.high
    ]
    told = "; ".join(
        f"{line.name} from {format_y(line.points[0][1])} to {format_y(line.points[-1][1])}"
        for line in series
    )
    grid = frame(across, up, names, format_y, counts=steps)
    bars = [
        tag("path", d=_error(across(x), up(y0), up(y1)), class_=f"error s{line.style}")
        for line in series
        for x, y0, y1 in _ends(line)
    ]
    drawing = svg(title, f"{told}, over {names[0]}.", _HEIGHT, grid, *dotted, *bars, *lines)
    keys = [(line.name, tag("path", d="M0 5H26", class_=f"line s{line.style}")) for line in series]
    return figure(title, f"{note} Logarithmic scale.".strip() if log else note, keys, drawing)


def _ends(line: Series) -> list[tuple[float, float, float]]:
    """Return x and the two ends of every error bar of a line."""
    found = zip(line.points, line.errors, strict=False)
    return [(x, y - error, y + error) for (x, y), error in found if error]


def _error(x: float, low: float, high: float) -> str:
    return f"M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8M{x:.1f} {low:.1f}V{high:.1f}"


def _line(points: Sequence[tuple[float, float]], across: Axis, up: Axis) -> str:
    stride = -(-len(points) // _MOST_POINTS)
    kept = list(points[::stride])
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in kept)


def _stairs(points: Sequence[tuple[float, float]], across: Axis, up: Axis) -> str:
    height = points[0][1]
    parts = [f"M{across(points[0][0]):.1f} {up(height):.1f}"]
    for x, y in points:
        if y != height:
            parts.append(f"H{across(x):.1f}V{up(y):.1f}")
            height = y
    return "".join(parts) + f"H{across(points[-1][0]):.1f}"


def dot_chart(
    title: str,
    rows: Sequence[Row],
    axis: str,
    *,
    note: str = "",
    bars: bool = False,
    format_x: Formatter = whole_percent,
) -> Markup:
    """Draw one mark per row, with error bars, or bars from zero.

    Args:
        title: what is shown.
        rows: from top to bottom.
        axis: the name of the horizontal axis.
        note: a sentence on how to read it.
        bars: draw bars instead of dots; they start at zero.
        format_x: how to write values on the axis.
    """
    if not rows:
        return Markup("")
    left = 18 + 6.6 * max(min(len(row.name), 20) for row in rows)
    right = 16 + 6.4 * max(len(row.shown) for row in rows)
    pitch = 22.0 if bars else 30.0
    bottom = 8 + pitch * len(rows)
    reach = [0.0] if bars else []
    for row in rows:
        reach += [row.value - (row.spread or 0), row.value + (row.spread or 0)]
        reach += [*row.points] if row.second is None else [*row.points, row.second]
    rounded = ticks(min(reach), max(reach), 3)
    across = Axis(rounded[0], rounded[-1], left, WIDTH - right)
    parts = []
    for value in rounded:
        x = across(value)
        parts.append(tag("path", d=f"M{x:.1f} 4V{bottom:.0f}", class_="grid"))
        parts.append(text(x, bottom + 16, format_x(value)))
    parts.append(text((left + WIDTH - right) / 2, bottom + 33, axis, kind="axis"))
    for index, row in enumerate(rows):
        y = 8 + pitch * (index + 0.5)
        parts.append(text(left - 10, y + 4, shorten(row.name), "end", "name"))
        parts.append(_mark(row, y, across, bars=bars))
        parts.append(text(WIDTH, y + 4, row.shown, "end", "value"))
    told = "; ".join(f"{row.name}: {row.shown}" for row in rows)
    return figure(title, note, [], svg(title, told, bottom + 38, *parts))


def _mark(row: Row, y: float, across: Axis, *, bars: bool) -> Markup:
    x = across(row.value)
    parts = [tag("title", f"{row.name}: {row.shown}")]
    if bars:
        start = across(0.0)
        width = max(abs(x - start), 1.0)
        place = {"x": min(start, x), "y": y - 6, "width": width, "height": 12}
        parts.append(tag("rect", rx=2, class_=f"fill s{row.style}", **place))
    if row.spread:
        low, high = across(row.value - row.spread), across(row.value + row.spread)
        ends = f"M{low:.1f} {y - 5:.1f}v10M{high:.1f} {y - 5:.1f}v10M{low:.1f} {y:.1f}H{high:.1f}"
        parts.append(tag("path", d=ends, class_=f"error s{row.style}"))
    if not bars and row.second is not None:
        style = f"ring s{row.style}"
        parts.append(tag("circle", cx=across(row.second), cy=y, r=4.5, class_=style))
    if not bars:
        parts.append(tag("circle", cx=x, cy=y, r=5, class_=f"fill s{row.style}"))
    # Below the mean, so that neither hides the other.
    parts += [
        tag("circle", cx=across(point), cy=y + 9, r=2.2, class_=f"point s{row.style}")
        for point in row.points
    ]
    return tag("g", *parts)


def scatter(
    title: str, series: Sequence[Series], names: tuple[str, str], limit: float, *, note: str = ""
) -> Markup:
    """Draw points in a square with its diagonal, as persistence diagrams are drawn."""
    height = 290.0
    high = limit if limit > 0 else 1.0
    up = Axis(0.0, high, height - BOTTOM, TOP)
    across = Axis(0.0, high, LEFT, LEFT + up.start - up.end)
    diagonal = f"M{across.start:.0f} {up.start:.0f}L{across.end:.1f} {up.end:.0f}"
    points = [
        _point(across(birth), up(death), line.style)
        for line in series
        for birth, death in line.points
    ]
    told = "; ".join(f"{line.name}: {len(line.points)}" for line in series)
    grid = frame(across, up, names)
    drawing = svg(title, told, height, grid, tag("path", d=diagonal, class_="mark"), *points)
    keys = [(line.name, _point(13, 5, line.style)) for line in series]
    return figure(title, note, keys, drawing)


def _point(x: float, y: float, style: int) -> Markup:
    """Draw a disc, a square, a triangle or a diamond."""
    if style == 0:
        return tag("circle", cx=float(x), cy=float(y), r=3.5, class_="point s0")
    shapes = {1: "m-3.5-3.5h7v7h-7z", 2: "m0-4.5l4.3 8h-8.6z"}
    shape = shapes.get(style, "m0-5l4.5 5l-4.5 5l-4.5-5z")
    return tag("path", d=f"M{x:.1f} {y:.1f}{shape}", class_=f"point s{style}")
