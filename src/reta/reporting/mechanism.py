"""What happened inside: losses, anchors, topology."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from markupsafe import Markup

from reta.reporting import words
from reta.reporting.charts import Row, Series, dot_chart, line_chart, scatter
from reta.reporting.pictures import heat_map
from reta.reporting.reading import Facts, Run, figure, mean, part
from reta.reporting.svg import compact, embedded, tag

_MOST_BARS = 20


@dataclass(frozen=True)
class ClassCharts:
    """The charts of one class, shown one class at a time."""

    label: int
    name: str
    charts: list[Markup]


def connection_steps(run: Run) -> list[float]:
    """Return the steps at which real images were blended in."""
    steps = {
        step
        for facts in run.recoveries
        for row in facts.get("connections", [])
        if (step := figure(row, "step")) is not None
    }
    return sorted(steps)


def loss_charts(run: Run) -> list[Markup]:
    """Return the course of the losses, averaged over blocks of classes."""
    marks = connection_steps(run)
    dotted = " Dotted lines: connections." if marks else ""
    pull = "Its gradient on the pixels, relative to the loss; at 1 both are equally strong."
    shown = [
        ("Loss", _by_teacher(run, "loss"), f"Falls as the teachers recognise the images.{dotted}"),
        (
            "Batch-norm gap",
            _by_teacher(run, "bn_gap"),
            "How far the statistics inside the teachers are from those of real images.",
        ),
        (
            "Topology loss",
            [Series("topology", _course(run, "topology"))],
            "How far the shape of each class is from the real one.",
        ),
        ("Pull of the topology", [Series("pull", _course(run, "gradient_ratio"))], pull),
    ]
    charts = [
        line_chart(title, series, ("step", ""), note=note, marks=marks, wide=True)
        for title, series, note in shown
    ]
    charts.insert(2, ratio_chart(run))
    return [chart for chart in charts if chart]


def ratio_chart(run: Run) -> Markup:
    """Return how the two parts of the loss compare, a line per teacher."""
    weight = figure(part(part(run.manifest, "recipe"), "objective"), "bn_weight")
    if weight is None:
        return Markup("")
    series = []
    for index in sorted({int(row.get("teacher", 0)) for row in _steps(run)}):
        gaps = dict(_course(run, "bn_gap", index))
        points = [
            (step, weight * gaps[step] / (loss - weight * gaps[step]))
            for step, loss in _course(run, "loss", index)
            if step in gaps and loss > weight * gaps[step] > 0
        ]
        series.append(Series(teacher_name(run, index), points, index % 6))
    return line_chart(
        "Statistics against classes",
        series,
        ("step", "ratio"),
        note=f"The weighted batch-norm gap (β = {words.number(weight)}) over the cross-entropy: "
        "which part of the loss leads. It differs by teacher, so β does not carry over.",
        marks=connection_steps(run),
        wide=True,
    )


def _steps(run: Run) -> list[Facts]:
    return [row for facts in run.recoveries for row in facts.get("steps", [])]


def _by_teacher(run: Run, name: str) -> list[Series]:
    """Return a line per teacher, since each sees the images in its own way."""
    rows = [row for facts in run.recoveries for row in facts.get("steps", [])]
    teachers = sorted({int(row.get("teacher", 0)) for row in rows})
    return [
        Series(teacher_name(run, teacher), _course(run, name, teacher), index % 6)
        for index, teacher in enumerate(teachers)
    ]


def _course(run: Run, name: str, teacher: int | None = None) -> list[tuple[float, float]]:
    values: dict[float, list[float]] = defaultdict(list)
    for facts in run.recoveries:
        for row in facts.get("steps", []):
            step, value = figure(row, "step"), figure(row, name)
            wanted = teacher is None or int(row.get("teacher", 0)) == teacher
            if wanted and step is not None and value is not None:
                values[step].append(value)
    return [(step, sum(found) / len(found)) for step, found in sorted(values.items())]


def teacher_name(run: Run, index: int) -> str:
    """Return what to call a teacher."""
    if index < len(run.teachers):
        return str(run.teachers[index].get("architecture", f"teacher {index + 1}"))
    return f"teacher {index + 1}"


def connection_rows(run: Run) -> list[list[str]]:
    """Return a table row per connection, averaged over blocks of classes."""
    rows = []
    for step in connection_steps(run):
        here = [
            row
            for facts in run.recoveries
            for row in facts.get("connections", [])
            if figure(row, "step") == step
        ]
        averages = {
            name: mean([figure(row, name) for row in here])
            for name in (
                "fit_gap",
                "complexity",
                "distinct_anchors",
                "kept_anchors",
                "contraction_ratio",
            )
        }
        distinct, kept = averages["distinct_anchors"], averages["kept_anchors"]
        rows.append(
            [
                words.count(step),
                words.number(averages["fit_gap"]),
                words.number(averages["complexity"]),
                words.MISSING if distinct is None else f"{distinct:.3g} of {run.ipc}",
                words.MISSING if kept is None else f"{kept:.0%}",
                words.number(averages["contraction_ratio"]),
            ]
        )
    return rows


def distance_chart(run: Run) -> Markup:
    """Return how spread out the classes are, real and synthetic."""
    distances = part(run.geometry, "intra_class_distance")
    rows = [
        Row(f"{kind} images", value, words.number(value), style=style)
        for kind, style in (("real", 1), ("synthetic", 0))
        if (value := figure(distances, kind)) is not None
    ]
    return spread_chart(rows)


def spread_chart(rows: list[Row]) -> Markup:
    """Return the mean distances within a class, of real images and of synthetic ones."""
    return dot_chart(
        "Spread within a class",
        rows,
        "mean distance between images of a class",
        note="Shorter than real: the images of a class have moved together.",
        bars=True,
        format_x=compact,
    )


def kappa_values(run: Run) -> list[tuple[str, float]]:
    """Return the contraction gap of each class, the largest first."""
    values = (run.geometry or {}).get("kappa") or []
    pairs = [
        (name, float(value))
        for name, value in zip(run.classes, values, strict=False)
        if isinstance(value, int | float)
    ]
    return sorted(pairs, key=lambda pair: -pair[1])


def kappa_chart(run: Run) -> Markup:
    """Return the contraction gap of the classes; of many classes, the largest."""
    values = kappa_values(run)
    rows = [Row(name, value, words.number(value)) for name, value in values[:_MOST_BARS]]
    more = f" The {len(rows)} largest of {len(values)}." if len(values) > len(rows) else ""
    return dot_chart(
        "Contraction gap κ by class",
        rows,
        "κ (0: nothing lost)",
        note=f"How much of a class's structure the synthetic images lack.{more}",
        bars=True,
        format_x=compact,
    )


def shape_charts(run: Run) -> list[ClassCharts]:
    """Return Betti curves and persistence diagrams for each class that has them."""
    geometry = run.geometry or {}
    found: dict[int, list[Markup]] = {}
    for facts in geometry.get("betti") or []:
        found.setdefault(int(facts["label"]), []).extend(_betti(facts))
    for facts in geometry.get("diagrams") or []:
        found.setdefault(int(facts["label"]), []).extend(_diagrams(facts))
    return [
        ClassCharts(label, run.classes[label], charts)
        for label, charts in sorted(found.items())
        if label < len(run.classes)
    ]


_DEGREES = (
    ("Separate groups", "B₀", "Join images closer than ε; count the groups that remain."),
    ("Loops", "B₁", "Count the loops that the same links close and do not fill."),
)


def _betti(facts: Facts) -> list[Markup]:
    charts = []
    for degree, (title, symbol, note) in enumerate(_DEGREES):
        series = [
            Series(kind, list(zip(facts["lengths"], facts[kind][degree], strict=False)), style)
            for kind, style in (("synthetic", 0), ("real", 1))
            if degree < len(facts.get(kind, []))
        ]
        names = ("link length ε", f"{symbol}(ε)")
        charts.append(line_chart(title, series, names, note=note, steps=True))
    return [chart for chart in charts if chart]


_CLOUDS = (
    ("synthetic", 0, "groups"),
    ("real", 0, "groups"),
    ("synthetic", 1, "loops"),
    ("real", 1, "loops"),
)


def _diagrams(facts: Facts) -> list[Markup]:
    series = [
        Series(f"{kind} {what}", [(float(b), float(d)) for b, d in facts[kind][degree]], style)
        for style, (kind, degree, what) in enumerate(_CLOUDS)
        if degree < len(facts.get(kind, []))
    ]
    note = "Each point is a group or loop; far above the diagonal means it lasts."
    limit = figure(facts, "max_length") or 1.0
    names = ("appears at ε", "disappears at ε")
    return [scatter("Persistence diagram", series, names, limit, note=note), _images(facts)]


def _images(facts: Facts) -> Markup:
    """Return the persistence images, real above synthetic, loops beside groups."""
    images = part(facts, "images")
    rows = []
    for kind in ("synthetic", "real"):
        for degree, what in enumerate(("groups", "loops")):
            both = [images.get(side, []) for side in ("real", "synthetic")]
            if any(degree >= len(side) or not side[degree] for side in both):
                return Markup("")
            # One scale for both kinds, so that a paler picture has lost something.
            top = max(value for side in both for row in side[degree] for value in row)
            picture = heat_map(images[kind][degree], top, flip=True)
            name = f"{kind} {what}"
            shown = embedded(picture, f"Persistence image of the {name}")
            rows.append(tag("li", shown, tag("span", name)))
    note = (
        "The diagram as the topology loss sees it: to the right appears late, upwards lasts long. "
        "Paler or emptier than real: structure that is missing."
    )
    caption = tag("figcaption", tag("strong", "Persistence images"), tag("span", note))
    return tag("figure", caption, tag("ul", *rows, class_="heats"), class_="chart")
