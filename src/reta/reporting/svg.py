"""What every chart is made of: elements, axes, round numbers, frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reta.reporting.pictures import Picture

# The drawing is this wide, so that its text keeps a readable size on a phone.
WIDTH = 400.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 10.0, 10.0, 40.0

Formatter = Callable[[float], str]


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element with text and attributes escaped; ``text_anchor`` means text-anchor."""
    written = [
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _plain(value))
        for key, value in attributes.items()
        if value is not None
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(
        Markup(name), Markup("").join(written), Markup("").join(children)
    )


def embedded(picture: Picture, alt: str) -> Markup:
    """Return an ``<img>`` of an embedded picture, its pixels as squares."""
    return Markup('<img src="{}" width="{}" height="{}" alt="{}" class="pixels">').format(
        picture.source, picture.width, picture.height, alt
    )


def _plain(value: object) -> str:
    # Tenths of a unit are finer than the eye; shorter numbers keep the page small.
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(x: float, y: float, content: str, anchor: str = "middle", kind: str = "") -> Markup:
    """Return a line of text."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=kind or None)


def svg(title: str, description: str, height: float, *children: Markup) -> Markup:
    """Return a drawing with its accessible name and description."""
    box = f"0 0 {WIDTH:.0f} {height:.0f}"
    return tag(
        "svg", tag("title", title), tag("desc", description), *children, role="img", viewBox=box
    )


def figure(title: str, note: str, legend: Sequence[tuple[str, Markup]], drawing: Markup) -> Markup:
    """Return a drawing under its title, a sentence on how to read it, and its legend."""
    keys = [
        tag("li", tag("svg", key, viewBox="0 0 26 10", aria_hidden="true"), name)
        for name, key in legend
    ]
    caption = tag("figcaption", tag("strong", title), tag("span", note) if note else "")
    shown = tag("ul", *keys, class_="legend") if len(keys) > 1 else ""
    return tag("figure", caption, shown, drawing, class_="chart")


def compact(value: float) -> str:
    """Return a number short enough for an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 10000:
        return f"{value / 1000:.0f}k"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


def whole_percent(value: float) -> str:
    """Return a share as a percentage without needless digits."""
    return f"{100 * value:.3g} %"


def shorten(name: str, length: int = 20) -> str:
    """Cut a long name for an axis in its middle: names often differ at the end."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that cover an interval, about ``count`` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map from values to drawing units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return the round numbers on this axis."""
        if not self.log:
            slack = 1e-9 * (self.high - self.low)
            candidates = ticks(self.low, self.high, count)
            return [tick for tick in candidates if self.low <= tick <= self.high + slack]
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        stride = max(1, (last - first) // count)
        return [10.0**power for power in range(first, last + 1, stride)]


def covering(values: Sequence[float], *, log: bool, floor: float | None) -> tuple[float, float]:
    """Return round limits around some values, down to a floor where one is given."""
    low, high = min(values), max(values)
    if log:
        return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) + 1e-9)
    low = low if floor is None else min(low, floor)
    rounded = ticks(low, high, 4)
    return rounded[0], rounded[-1]


def frame(
    across: Axis,
    up: Axis,
    names: tuple[str, str],
    format_y: Formatter = compact,
    *,
    counts: bool = False,
) -> Markup:
    """Draw the grid, the tick labels and the names of both axes; counts have whole ticks."""
    parts = []
    for value in up.ticks(max(1, min(5, int(up.high))) if counts else 5):
        y = up(value)
        parts.append(tag("path", d=f"M{LEFT:.0f} {y:.1f}H{across.end:.0f}", class_="grid"))
        parts.append(text(LEFT - 6, y + 4, format_y(value), "end"))
    parts += [text(across(value), up.start + 17, compact(value)) for value in across.ticks()]
    parts.append(text((across.start + across.end) / 2, up.start + 34, names[0], kind="axis"))
    place = f"translate(11 {(up.start + up.end) / 2:.0f}) rotate(-90)"
    if names[1]:
        parts.append(tag("text", names[1], transform=place, text_anchor="middle", class_="axis"))
    return Markup("").join(parts)
