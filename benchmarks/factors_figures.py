"""The figures of docs/factors.md, as SVG."""

from __future__ import annotations

import math
from html import escape
from statistics import mean

from factors import BASELINE, TEACHERS
from factors_gaps import DRAWN, FROM_DRAWN, RULE, Settings, column, over, views, within

from reta.config import VIEWS
from reta.synthesis.retrieval import RetrievedAnchor

_OF_DRAWN = "reta-drc start.order=random"
_WIDEST = 20.0  # points; an interval wider than that says nothing, and hides the others


def forest(settings: Settings) -> str:
    """Return all rows as a figure: mean difference over settings, with its interval."""
    rows = list(dict.fromkeys(row for s in settings.values() for row in s["rows"]))
    rows = [row for row in rows if row == DRAWN or row not in FROM_DRAWN]  # of FADRM+'s start
    found = [(row, over(settings.values(), row)) for row in rows]
    shown = sorted(((r, g) for r, g in found if g), key=lambda pair: -pair[1].mean)
    reach = max(max(abs(g.low), abs(g.high)) for _, g in shown)
    left, width, line = 390, 360, 20

    def x(value: float) -> float:
        return left + width * (value + reach) / (2 * reach)

    parts = []
    for index, (row, gap) in enumerate(shown):
        y = 30 + line * index
        colour = "#1a7f37" if gap.low > 0 else "#c4361c" if gap.high < 0 else "#6e7781"
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(row)}</text>'
            f'<line x1="{x(gap.low):.1f}" x2="{x(gap.high):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x(gap.mean):.1f}" cy="{y}" r="4" fill="{colour}"/>'
            f'<text x="{left + width + 10}" y="{y + 4}">{gap.mean:+.1f}</text>'
        )
    height = 50 + line * len(shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" '
        'font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="18" y2="{height - 25}" stroke="#8c959f" '
        'stroke-dasharray="3 3"/>'
        f'<text x="{x(0):.1f}" y="{height - 8}" text-anchor="middle">'
        f"points of accuracy against {BASELINE}, mean over settings, 95 % interval</text>"
        f"{''.join(parts)}</svg>\n"
    )


def knowledge_figure(settings: Settings) -> str:
    """Return what retrieval from cells gains, against what the teacher knows, as a figure."""
    assert isinstance(RULE, RetrievedAnchor)
    row, colours = "reta-drc connection.anchors=cells", ("#54aeff", "#8250df")
    points = [
        (s, gap, colour)
        for own, base, colour in zip((row, _OF_DRAWN), (BASELINE, DRAWN), colours, strict=True)
        for s in settings.values()
        if RULE.most is None or s["config"]["ipc"] <= RULE.most  # of more, classes contract
        if (gap := within(s, own, base)) and gap.high - gap.low < _WIDEST
    ]
    low, high = min(gap.low for _, gap, _ in points), max(gap.high for _, gap, _ in points)
    left, top, width, height = 60, 20, 640, 300

    def x(value: float) -> float:
        return left + width * value

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    parts = [
        f'<line x1="{left}" x2="{left + width}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="#8c959f"/>'
        f'<line x1="{x(RULE.known)}" x2="{x(RULE.known)}" y1="{top}" y2="{top + height}" '
        'stroke="#8c959f" stroke-dasharray="3 3"/>'
        f'<text x="{x(RULE.known) + 6}" y="{top + 10}" fill="#57606a">reta retrieves</text>'
        f'<text x="{x(RULE.known) - 6}" y="{top + 10}" fill="#57606a" text-anchor="end">'
        "reta keeps the start</text>"
    ]
    for value in range(2 * math.ceil(low / 2), math.floor(high) + 1, 2):
        words = f"{value:+d}" if value else "0"
        parts.append(
            f'<text x="{left - 10}" y="{y(value) + 4:.1f}" text-anchor="end">{words}</text>'
        )
    for tenth in range(0, 11, 2):
        parts.append(
            f'<text x="{x(tenth / 10)}" y="{top + height + 18}" text-anchor="middle">'
            f"{tenth / 10:.1f}</text>"
        )
    for s, gap, colour in points:
        drawn = colour == colours[1]
        at = x(s["knowledge"]) + 3 * drawn  # beside what has the same teacher
        few = s["candidates"] < RULE.least
        parts.append(
            f"<g><title>{column(s)}, {s['candidates']} images a class: {gap}</title>"
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(gap.low):.1f}" y2="{y(gap.high):.1f}" '
            f'stroke="{colour}" stroke-opacity="0.5"/>'
            f'<circle cx="{at:.1f}" cy="{y(gap.mean):.1f}" r="5" stroke="{colour}" '
            f'stroke-width="2" fill="{"white" if few else colour}"/></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} '
        f'{top + height + 70}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}"
        f'<text x="{left}" y="{top + height + 38}">what the first teacher knows of the classes, '
        f"1 − CE / ln C; up: points of accuracy gained over {BASELINE}, 95 %</text>"
        f'<text x="{left}" y="{top + height + 56}"><tspan fill="{colours[0]}">● from FADRM\'s '
        f'start</tspan> <tspan fill="{colours[1]}" dx="10">● each seed from another</tspan>'
        f'<tspan dx="10">○ fewer than {RULE.least} images a class</tspan>'
        f'<tspan dx="10">(up to {RULE.most} made of each)</tspan></text></svg>\n'
    )


_BY_SIZE = {1: "#0969da", 5: "#8250df", 10: "#bc4c00"}  # images per class


def strength_figure(settings: Settings) -> str:
    """Return what teachers that learned for longer or shorter cost, as a figure."""
    families = [[settings[name] for name in names if name in settings] for names in TEACHERS]
    lines = []
    for known in families:
        reached = [100 * mean(one["last"] for one in s["rows"][BASELINE]) for s in known]
        if len(known) > 1:
            lost = [value - max(reached) for value in reached]
            lines.append((known, lost))
    seen = [math.log2(views(s)) for known, _ in lines for s in known]
    first, last = math.floor(min(seen)), math.ceil(max(seen))
    low = 2 * math.floor(min(-1.0, *(value for _, lost in lines for value in lost)) / 2)
    left, top, width, height = 60, 30, 640, 280

    def x(value: float) -> float:
        return left + width * (math.log2(value) - first) / (last - first)

    def y(value: float) -> float:
        return top + height * value / low

    parts = [
        f'<line x1="{left}" x2="{left + width}" y1="{y(0)}" y2="{y(0)}" stroke="#8c959f"/>'
        f'<line x1="{x(VIEWS):.1f}" x2="{x(VIEWS):.1f}" y1="{top}" y2="{top + height}" '
        'stroke="#8c959f" stroke-dasharray="3 3"/>'
        f'<text x="{x(VIEWS):.1f}" y="{top - 12}" fill="#57606a" text-anchor="middle">'
        "the default of --effort small</text>"
    ]
    for value in range(0, low - 1, -2):
        parts.append(
            f'<text x="{left - 10}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>'
        )
    for power in range(first, last + 1):
        parts.append(
            f'<text x="{x(2**power):.1f}" y="{top + height + 18}" text-anchor="middle">'
            f"{2**power:,}</text>"
        )
    for known, lost in lines:
        colour = _BY_SIZE.get(known[0]["config"]["ipc"], "#6e7781")
        at = [(x(views(s)), y(value)) for s, value in zip(known, lost, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for (a, b), s, value in zip(at, known, lost, strict=True):
            parts.append(
                f"<g><title>{column(s)}, {s['config']['teacher_epochs']} epochs: {value:+.1f}"
                f'</title><circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="{colour}"/></g>'
            )
    legend = "".join(
        f'<tspan fill="{colour}" dx="10">● {size}</tspan>' for size, colour in _BY_SIZE.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} '
        f'{top + height + 70}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}"
        f'<text x="{left}" y="{top + height + 38}">how often teachers saw images of a class, for '
        f"each image made of it; down: points of {BASELINE} below its best teachers</text>"
        f'<text x="{left}" y="{top + height + 56}">images made of each class:{legend}</text>'
        "</svg>\n"
    )
