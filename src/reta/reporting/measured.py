"""Charts of what each evaluation measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, TypeGuard

from markupsafe import Markup

from reta.reporting import words
from reta.reporting.charts import Row, Series, dot_chart, line_chart
from reta.reporting.reading import Facts
from reta.reporting.svg import compact, whole_percent

_MOST_BARS = 20


def written(unit: str, values: Sequence[float]) -> str:
    """Return mean ± standard deviation in its unit; one value has no deviation."""
    write = {"seconds": words.duration, "bytes": words.size}.get(unit, words.number)
    if not values:
        return words.MISSING
    if unit == "share":
        deviation = stdev(values) if len(values) > 1 else None
        return words.spread(mean(values), deviation, len(values))
    if len(values) > 1:
        return f"{write(mean(values))}\u00a0±\u00a0{write(stdev(values))}"
    return write(values[0])


def numbers(values: object) -> list[float]:
    """Return the finite numbers of a list, or none if it is no list."""
    found = values if isinstance(values, list) else []
    return [float(value) for value in found if is_number(value)]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def drawn(name: str, details: Facts) -> list[Markup]:
    """Return the charts of an evaluation; none where its details are not as expected."""
    draw = _DRAWN.get(name)
    return [chart for chart in draw(details) if chart] if draw else []


def _bars(title: str, pairs: Sequence[tuple[str, list[float]]], note: str) -> Markup:
    rows = [
        Row(name, mean(values), written("share", values), stdev(values) if values[1:] else None)
        for name, values in pairs
        if values
    ]
    more = f" The first {_MOST_BARS} of {len(rows)}." if len(rows) > _MOST_BARS else ""
    return dot_chart(
        title, rows[:_MOST_BARS], "", note=note + more, bars=True, format_x=whole_percent
    )


def _architectures(details: Facts) -> list[Markup]:
    pairs = [
        (str(name), numbers(found.get("last")))
        for name, found in details.items()
        if isinstance(found, Mapping)
    ]
    return [_bars("Test accuracy by architecture", pairs, "Last epoch.")]


def _corruptions(details: Facts) -> list[Markup]:
    by_name = mapping(details.get("corruptions"))
    severities: dict[float, list[float]] = {}
    means = []
    for name, row in by_name.items():
        values = {float(key): numbers(found) for key, found in mapping(row).items()}
        values = {key: found for key, found in values.items() if found}
        for key, found in values.items():
            severities.setdefault(key, []).append(mean(found))
        if values:
            means.append((str(name).replace("_", " "), mean(map(mean, values.values()))))
    rows = [Row(name, value, words.percent(value)) for name, value in sorted(means, key=_second)]
    course = [(severity, mean(found)) for severity, found in sorted(severities.items())]
    return [
        dot_chart(
            "Accuracy by corruption",
            rows,
            "share of test images recognised",
            note="Mean over the severities and students, the hardest first.",
            bars=True,
        ),
        line_chart(
            "Accuracy by severity",
            [Series("mean over the corruptions", course)],
            ("severity", ""),
            format_y=whole_percent,
        )
        if len(course) > 1
        else Markup(""),
    ]


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _corruption_table(details: Facts) -> Facts:
    """Return the accuracy by corruption and severity, ready to be a table."""
    table = {}
    for name, row in mapping(details.get("corruptions")).items():
        table[str(name).replace("_", " ")] = {
            f"severity {key}": written("share", numbers(found))
            for key, found in mapping(row).items()
        }
    return {"accuracy by corruption and severity": table} if table else dict(details)


def _diversity(details: Facts) -> list[Markup]:
    rows = details.get("classes")
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    charts = []
    for score, told in (
        ("coverage", "Share of the real images with a synthetic one near them."),
        ("recall", "Share of the real images that lie between the synthetic ones."),
    ):
        known = []
        for row in rows:
            value = mapping(row.get("synthetic")).get(score)
            real = mapping(row.get("real")).get(score)
            if is_number(value):
                told_value = words.percent(float(value))
                second = float(real) if is_number(real) else None
                known.append(Row(str(row.get("class")), float(value), told_value, second=second))
        charts.append(
            dot_chart(
                f"{score.capitalize()} by class",
                sorted(known, key=_value)[:_MOST_BARS],
                "",
                note=f"{told} Disc: synthetic. Ring: as many real images.",
            )
        )
    return charts


def _continual(details: Facts) -> list[Markup]:
    """Return each buffer's accuracy over the memory, or over the stages where one was tried."""
    curves = mapping(details.get("curves"))
    charts = []
    for measure, title in (
        ("incremental", "Average incremental accuracy"),
        ("forgetting", "Forgetting"),
    ):
        lines = []
        for style, (buffer, by_memory) in enumerate(list(curves.items())[:6]):
            known = sorted(
                (float(memory), values)
                for memory, found in mapping(by_memory).items()
                if (values := numbers(mapping(found).get(measure)))
            )
            points = [(memory, mean(values)) for memory, values in known]
            errors = [stdev(values) if values[1:] else 0.0 for _, values in known]
            lines.append(Series(str(buffer), points, style, errors))
        sizes = {point[0] for line in lines for point in line.points}
        axes = ("images in memory", "")
        if len(sizes) > 1:
            note = "Bars: one standard deviation over the class orders."
            charts.append(line_chart(title, lines, axes, note=note, format_y=whole_percent))
        else:
            pairs = [(line.name, [value for _, value in line.points]) for line in lines]
            charts.append(_bars(title, pairs, ""))
    return [*charts, _stages(curves)]


def _stages(curves: Mapping[str, Any]) -> Markup:
    """Return the accuracy after each stage at the largest memory, over the class orders."""
    lines = []
    for style, (buffer, by_memory) in enumerate(list(curves.items())[:6]):
        sizes = sorted(mapping(by_memory).items(), key=lambda pair: float(pair[0]))
        orders = mapping(sizes[-1][1]).get("accuracy") if sizes else None
        runs = [numbers(run) for run in orders] if isinstance(orders, list) else []
        stages = list(zip(*runs, strict=False)) if runs else []
        points = [(float(stage), mean(values)) for stage, values in enumerate(stages, 1)]
        lines.append(Series(str(buffer), points, style))
    return line_chart(
        "Accuracy on the classes seen so far",
        lines,
        ("stage", ""),
        note="At the largest memory; mean over the class orders.",
        format_y=whole_percent,
    )


def _value(row: Row) -> float:
    return row.value


def _efficiency(details: Facts) -> list[Markup]:
    seconds = mapping(details.get("seconds"))
    rows = [
        Row(str(name), float(value), words.duration(float(value)))
        for name, value in seconds.items()
        if is_number(value)
    ]
    return [dot_chart("Time by stage", rows, "seconds", bars=True, format_x=compact)]


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def _continual_table(details: Facts) -> Facts:
    """Return the measures by buffer and memory; the matrices of every order stay in the file."""
    rows = {}
    for buffer, by_memory in mapping(details.get("curves")).items():
        for memory, found in mapping(by_memory).items():
            rows[f"{buffer}, {memory} images"] = {
                name: written("share", numbers(mapping(found).get(name)))
                for name in ("incremental", "final", "forgetting")
            }
    rest = {key: value for key, value in details.items() if key != "curves"}
    return {**rest, "accuracy by buffer and memory": rows} if rows else dict(details)


def _ranking(details: Facts) -> list[Markup]:
    pairs = [
        (str(kind).replace("_", " "), numbers(mapping(found).get("test")))
        for kind, found in mapping(details.get("trainings")).items()
    ]
    return [_bars("Accuracy by kind of training", pairs, "What the scores are made of.")]


def _ranking_table(details: Facts) -> Facts:
    """Return the trainings behind the scores; every tried rate stays in the file."""
    rows = {
        str(kind).replace("_", " "): {
            "learning rate": mapping(found).get("rate"),
            "test accuracy": written("share", numbers(mapping(found).get("test"))),
        }
        for kind, found in mapping(details.get("trainings")).items()
    }
    return {"trainings": rows} if rows else dict(details)


_DRAWN: dict[str, Callable[[Facts], list[Markup]]] = {
    "architectures": _architectures,
    "continual": _continual,
    "corruptions": _corruptions,
    "diversity": _diversity,
    "efficiency": _efficiency,
    "ranking": _ranking,
}

# Details that make a better table in another arrangement.
UNFOLDED: dict[str, Callable[[Facts], Facts]] = {
    "continual": _continual_table,
    "corruptions": _corruption_table,
    "ranking": _ranking_table,
}
