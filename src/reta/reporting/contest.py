"""Evaluations side by side: what each method reached, how sure that is, and over which settings."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from reta.reporting import words
from reta.reporting.charts import Row, Series, dot_chart, line_chart
from reta.reporting.evaluations import title_of
from reta.reporting.measured import mapping, numbers
from reta.reporting.ranking import Cell
from reta.reporting.reading import Facts, figure, part
from reta.reporting.svg import compact, whole_percent

ACCURACY = "accuracy"
_MOST_ROWS = 24
_MOST_LINES = 6


@dataclass(frozen=True)
class Contest:
    """One evaluation of all methods.

    Attributes:
        name: of the evaluation.
        title: for people.
        titles: of the columns, without the first.
        rows: a method and its cells.
        notes: sentences that must stand beside the numbers.
        charts: what to look at.
    """

    name: str
    title: str
    titles: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]
    charts: list[Markup]


def contests(facts: Facts) -> list[Contest]:
    """Return a table and a chart for each evaluation but accuracy, which leads the page."""
    return [
        _contest(facts, name, dict(found))
        for name, found in part(facts, "evaluations").items()
        if name != ACCURACY and isinstance(found, dict)
    ]


def _contest(facts: Facts, name: str, found: Facts) -> Contest:
    figures = part(found, "figures")
    order = [str(key) for key in found.get("order") or figures if key in figures]
    methods = [str(method) for method in facts.get("methods", [])]
    best = {key: _best(figures[key], methods) for key in order}
    rows = []
    for method in methods:
        cells = []
        for key in order:
            row = part(part(figures[key], "rows"), method)
            leads = figure(row, "mean") is not None and figure(row, "mean") == best[key]
            cells.append(Cell(written(str(figures[key].get("unit")), row), leads))
        rows.append((method, cells))
    charts = [*curve_charts(figures, methods)]
    charts += [figure_chart(figures[key], methods) for key in order[:2]]
    return Contest(
        name=name,
        title=title_of(name),
        titles=[str(figures[key].get("title") or key) for key in order],
        rows=rows,
        notes=[str(note) for note in found.get("notes") or []],
        charts=[chart for chart in charts if chart],
    )


def _best(figures: Facts, methods: list[str]) -> float | None:
    choose = {"higher": max, "lower": min}.get(str(figures.get("better")))
    values = [figure(part(part(figures, "rows"), method), "mean") for method in methods]
    known = [value for value in values if value is not None]
    return choose(known) if choose and len(set(known)) > 1 else None


def deviation(row: Facts) -> float | None:
    """Return the standard deviation over distillation seeds, or over students of one seed."""
    seeds, students = figure(row, "seeds") or 0, figure(row, "students") or 0
    if seeds > 1:
        return figure(row, "std_seeds")
    return figure(row, "std_students") if students > 1 else None


def written(unit: str, row: Facts) -> str:
    """Return mean ± standard deviation of a method in the unit of the figure."""
    value, spread = figure(row, "mean"), deviation(row)
    if unit == "share":
        return words.spread(value, spread, 2 if spread is not None else 1)
    write = {"seconds": words.duration, "bytes": words.size}.get(unit, words.number)
    if value is None or spread is None:
        return write(value)
    return f"{write(value)}\u00a0±\u00a0{write(spread)}"


def figure_chart(facts: Facts, methods: list[str]) -> Markup:
    """Return a figure by method: its mean, and a small point for each distillation seed."""
    unit, rows = str(facts.get("unit")), []
    for method in methods:
        row = part(part(facts, "rows"), method)
        value = figure(row, "mean")
        if value is not None:
            told = written(unit, row)
            rows.append(Row(method, value, told, deviation(row), points=seed_means(row)))
    title = str(facts.get("title") or "")
    better = {"higher": "Higher is better.", "lower": "Lower is better."}
    note = better.get(str(facts.get("better")), "")
    seeds = max((len(row.points) for row in rows), default=0)
    note += " Small points: each distillation seed." if seeds > 1 else ""
    return dot_chart(
        title[:1].upper() + title[1:] if title.isascii() else title,
        rows[:_MOST_ROWS],
        "",
        note=note.strip(),
        format_x=whole_percent if unit == "share" else compact,
    )


def curve_charts(figures: Facts, methods: list[str]) -> list[Markup]:
    """Return figures that are points of a curve as lines, one per method, with error bars."""
    curves: dict[tuple[str, str], list[tuple[float, Facts]]] = {}
    for found in figures.values():
        curve = part(found, "curve")
        at = figure(curve, "at")
        if at is not None:
            key = (str(curve.get("title")), str(curve.get("axis")))
            curves.setdefault(key, []).append((at, found))
    charts = []
    for (title, axis), points in curves.items():
        if len(points) < 2:
            continue
        points.sort(key=lambda point: point[0])
        lines = [
            _curve(method, style, [(at, part(part(one, "rows"), method)) for at, one in points])
            for style, method in enumerate(methods[:_MOST_LINES])
        ]
        share = points[0][1].get("unit") == "share"
        charts.append(
            line_chart(
                title[:1].upper() + title[1:],
                lines,
                (axis, ""),
                note="Bars: one standard deviation.",
                format_y=whole_percent if share else compact,
            )
        )
    return charts


def _curve(method: str, style: int, rows: list[tuple[float, Facts]]) -> Series:
    known = [(at, value, row) for at, row in rows if (value := figure(row, "mean")) is not None]
    errors = [deviation(row) or 0.0 for *_, row in known]
    return Series(method, [(at, value) for at, value, _ in known], style, errors)


def seed_means(row: Facts) -> list[float]:
    """Return the mean over the students of each distillation seed, where there are several."""
    values = row.get("values")
    means = [mean(found) for one in values if (found := numbers(one))] if values else []
    return means if len(means) > 1 else []


def differences(facts: Facts) -> dict[str, str]:
    """Return each method's difference in accuracy from the baseline, with its 95 % interval."""
    rows = part(_accuracy(facts), "rows")
    return {
        str(method): _difference(part(row, "difference"))
        for method, row in rows.items()
        if isinstance(row, dict) and part(row, "difference")
    }


def _difference(found: Facts) -> str:
    value, low, high = (figure(found, name) for name in ("mean", "t_low", "t_high"))
    if value is None or low is None or high is None:
        return words.MISSING
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")


def _accuracy(facts: Facts) -> Facts:
    return part(part(part(part(facts, "evaluations"), ACCURACY), "figures"), "last")


def accuracy_points(facts: Facts, method: str) -> list[float]:
    """Return the last-epoch accuracy of each distillation seed of a method."""
    return seed_means(part(part(_accuracy(facts), "rows"), method))


def published(facts: Facts) -> dict[str, str]:
    """Return published accuracies for the same setting."""
    found = part(part(facts, "published"), ACCURACY)
    return {name: words.percent(figure(dict(mapping(row)), "value")) for name, row in found.items()}


def sources(facts: Facts) -> list[str]:
    """Return where the published numbers stand."""
    found = part(part(facts, "published"), ACCURACY).values()
    return sorted({str(source) for row in found if (source := mapping(row).get("source"))})


def sweep_charts(facts: Facts) -> list[Markup]:
    """Return the accuracy over each setting that was varied, with error bars."""
    charts, rows = [], part(_accuracy(facts), "rows")
    for sweep in facts.get("sweeps") or []:
        points = []
        for point in sweep.get("points") or []:
            row = part(rows, str(point.get("method")))
            value = figure(row, "mean")
            if value is not None:
                told = written("share", row)
                points.append(
                    Row(
                        str(point.get("value")), value, told, deviation(row), points=seed_means(row)
                    )
                )
        title = f"{sweep.get('method')}: accuracy over {sweep.get('setting')}"
        note = f"Everything else as in {sweep.get('method')}; bars: one standard deviation."
        charts.append(dot_chart(title, points, "share of test images recognised", note=note))
    return [chart for chart in charts if chart]
