"""The page about a comparison: methods side by side on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reta.errors import DataError
from reta.reporting import contest, mechanism, outcome, words
from reta.reporting.album import PICTURE_BYTES, Gallery, Shelf, gallery
from reta.reporting.charts import Row, Series, dot_chart, line_chart
from reta.reporting.ranking import Cell, accuracy, leader, overlaps, table
from reta.reporting.reading import Facts, Run, figure, part, read_object, read_run
from reta.reporting.setup import data_facts, machine_facts
from reta.reporting.svg import compact, whole_percent
from reta.storage import MANIFEST

COMPARISON = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """A comparison folder as the report sees it.

    Attributes:
        path: the folder.
        facts: the content of ``comparison.json``.
        runs: the finished runs of each method, one per distillation seed.
        missing: sub-folders that are named but hold no finished run.
    """

    path: Path
    facts: Facts
    runs: dict[str, list[Run]]
    missing: list[str]

    @property
    def methods(self) -> list[str]:
        """The names of the methods, in the order of the table."""
        return [str(name) for name in self.facts.get("methods", [])]

    @property
    def rows(self) -> list[Facts]:
        """The rows of the table, in the order of the methods."""
        found = {str(row.get("method")): row for row in self.facts.get("rows", [])}
        return [found[name] for name in self.methods if name in found]


def read_comparison(path: Path) -> Comparison:
    """Read a comparison folder and the runs it names.

    Raises:
        DataError: if a file is damaged, or a run is said to lie outside the folder.
    """
    facts = read_object(path / COMPARISON)
    runs: dict[str, list[Run]] = {}
    missing = []
    for method, names in part(facts, "runs").items():
        runs[method] = []
        for name in names:
            if not (path / name).resolve().is_relative_to(path.resolve()):
                raise DataError(f"{path / COMPARISON}: {name!r} lies outside of {path}")
            if (path / name / MANIFEST).is_file():
                runs[method].append(read_run(path / name))
            else:
                missing.append(str(name))
    return Comparison(path, facts, runs, missing)


def _lead(comparison: Comparison) -> str:
    """Return the outcome in a few sentences."""
    data = part(comparison.facts, "data")
    sentences = [
        f"{words.plural(len(comparison.methods), 'method')} reduced the same "
        f"{words.count(figure(data, 'train'))} training images of "
        f"{data.get('name', 'a data set')} to a few; "
        "each result is judged by how well a model trained on it alone recognises "
        f"{words.count(figure(data, 'test'))} test images."
    ]
    teachers = part(comparison.facts, "teacher_accuracy")
    if known := [float(value) for value in teachers.values() if isinstance(value, float)]:
        epochs = sorted({float(n) for n in part(comparison.facts, "teacher_epochs").values()})
        long = f" for {words.listed([f'{n:g}' for n in epochs])} epochs" if epochs else ""
        sentences.append(
            f"The teachers, trained on all real images{long}, reach "
            f"{words.listed([words.percent(value) for value in known])}."
        )
    first = leader(comparison.rows)
    if first is None:
        return " ".join([*sentences, "No accuracy has been measured yet."])
    n = int(first.get("n") or 0)
    sentences.append(
        f"Highest is “{first['method']}” with {accuracy('last')(first)} "
        f"({words.plural(n, 'student')})."
    )
    rest = [row for row in comparison.rows if row is not first]
    close = [f"“{row['method']}”" for row in rest if overlaps(row, comparison.rows)]
    if close:
        interval = "interval overlaps" if len(close) == 1 else "intervals overlap"
        sentences.append(
            f"For {words.listed(close)} the {interval} with it: these runs do not tell them apart."
        )
    sentences += [
        f"Real images picked at random reach {accuracy('last')(row)}."
        for row in rest
        if row["method"] == "random"
    ]
    return " ".join(sentences)


def _accuracy_chart(comparison: Comparison) -> Markup:
    rows = [
        Row(
            str(row["method"]),
            value,
            accuracy("last")(row),
            figure(row, "last_std") if int(row.get("n") or 0) > 1 else None,
            figure(row, "best_mean"),
            points=contest.accuracy_points(comparison.facts, str(row["method"])),
        )
        for row in comparison.rows
        if (value := figure(row, "last_mean")) is not None
    ]
    return dot_chart(
        "Test accuracy",
        rows,
        "share of test images recognised",
        note="Disc: last epoch, with ± one standard deviation. Ring: best epoch. "
        "Small points: each distillation seed, where there are several.",
    )


def _kappa_chart(comparison: Comparison) -> Markup:
    rows = [
        Row(str(row["method"]), value, words.number(value))
        for row in comparison.rows
        if (value := figure(row, "kappa_mean")) is not None
    ]
    return dot_chart(
        "Contraction gap κ",
        rows,
        "κ (0: nothing lost)",
        note="How much of the classes' structure the synthetic images lack.",
        bars=True,
        format_x=compact,
    )


def _learning_chart(comparison: Comparison) -> Markup:
    """Return a line per method, the mean over the students of its first run."""
    series = [
        Series(name, outcome.mean_curve(run), style)
        for style, (name, run) in enumerate(list(_first_runs(comparison).items())[:6])
    ]
    return line_chart(
        "Test accuracy during training",
        series,
        ("epoch", ""),
        note="Mean over the students of the first run.",
        format_y=whole_percent,
    )


def _distance_chart(comparison: Comparison) -> Markup:
    rows: list[Row] = []
    for name, run in _first_runs(comparison).items():
        distances = part(run.geometry, "intra_class_distance")
        real, synthetic = figure(distances, "real"), figure(distances, "synthetic")
        if real is not None and not rows:
            rows.append(Row("real images", real, words.number(real), style=1))
        if synthetic is not None:
            rows.append(Row(name, synthetic, words.number(synthetic)))
    return mechanism.spread_chart(rows)


def _first_runs(comparison: Comparison) -> dict[str, Run]:
    runs = comparison.runs
    return {name: runs[name][0] for name in comparison.methods if runs.get(name)}


@dataclass(frozen=True)
class Wall:
    """One class as every method sees it."""

    label: int
    name: str
    shelves: list[tuple[str, Shelf]]


def _walls(comparison: Comparison) -> tuple[list[Wall], Gallery | None]:
    """Return the first images of each class by method, as many as the page can carry."""
    first = _first_runs(comparison)
    if not first:
        return [], None
    per_class = 6 if len(first) <= 4 else 3
    budget = PICTURE_BYTES // len(first)
    shown = {name: gallery(run, per_class, budget, anchors=False) for name, run in first.items()}
    present = {name: found for name, found in shown.items() if found}
    if not present:
        return [], None
    example = next(iter(present.values()))
    walls = [
        Wall(
            shelf.label,
            shelf.name,
            [
                (name, found.shelves[place])
                for name, found in present.items()
                if place < len(found.shelves)
            ],
        )
        for place, shelf in enumerate(example.shelves)
    ]
    return walls, example


@dataclass(frozen=True)
class Portrait:
    """What the page tells of one method beyond the table."""

    name: str
    row: Facts
    lines: list[tuple[str, str, str, str]]
    config: str | None


def _portrait(comparison: Comparison, name: str) -> Portrait:
    runs = comparison.runs.get(name, [])
    lines = [
        (
            str(run.manifest.get("seed", words.MISSING)),
            outcome.accuracy(run),
            words.number(figure(run.geometry, "kappa_mean")),
            run.path.relative_to(comparison.path).as_posix(),
        )
        for run in runs
    ]
    row = next((row for row in comparison.rows if str(row["method"]) == name), {})
    return Portrait(name, row, lines, runs[0].config if runs else None)


def _with_evidence(
    comparison: Comparison, titles: list[str], rows: list[tuple[Facts, list[Cell]]]
) -> tuple[list[str], list[tuple[Facts, list[Cell]]]]:
    """Add the difference from the baseline and the published accuracy, where they are known."""
    facts = comparison.facts
    columns = [
        (f"Points against {facts.get('baseline')} [95 %]", contest.differences(facts)),
        ("Published, not measured here", contest.published(facts)),
    ]
    for place, (title, found) in enumerate(columns, 1):
        if found:
            titles = [*titles[:place], title, *titles[place:]]
            rows = [
                (row, [*c[:place], Cell(found.get(str(row["method"]), words.MISSING)), *c[place:]])
                for row, c in rows
            ]
    return titles, rows


def comparison_page(comparison: Comparison) -> dict[str, Any]:
    """Return everything the page about a comparison shows."""
    titles, rows = table(comparison.rows)
    titles, rows = _with_evidence(comparison, titles, rows)
    walls, example = _walls(comparison)
    charts = [
        _accuracy_chart(comparison),
        _kappa_chart(comparison),
        _learning_chart(comparison),
        _distance_chart(comparison),
    ]
    measured = contest.contests(comparison.facts)
    sweeps = contest.sweep_charts(comparison.facts)
    present = [
        ("results", "Results", True),
        ("images", "Images", bool(walls)),
        *[(f"evaluation-{one.name}", one.title, True) for one in measured],
        ("sweeps", "Sweeps", bool(sweeps)),
        ("methods", "Methods", True),
        ("setup", "Setup", True),
    ]
    runs = [run for found in comparison.runs.values() for run in found]
    data = part(comparison.facts, "data")
    return {
        "comparison": comparison,
        "title": str(comparison.facts.get("title", "Comparison")),
        "lead": _lead(comparison),
        "titles": titles,
        "rows": rows,
        "close": any(cell.close for _, cells in rows for cell in cells),
        "charts": [chart for chart in charts if chart],
        "baseline": comparison.facts.get("baseline"),
        "several": any(len(found) > 1 for found in comparison.runs.values()),
        "sources": contest.sources(comparison.facts),
        "measured": measured,
        "sweeps": sweeps,
        "walls": walls,
        "example": example,
        "portraits": [_portrait(comparison, name) for name in comparison.methods],
        "data": data,
        "setup": data_facts(data) + (machine_facts(runs[0]) if runs else []),
        "sections": [(name, title) for name, title, there in present if there],
    }
