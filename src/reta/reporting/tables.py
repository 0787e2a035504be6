"""The numbers of a comparison as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reta.reporting.words import size

Facts = Mapping[str, Any]
Grid = list[list[str]]


def tables(comparison: Facts) -> dict[str, str]:
    """Return the files of a comparison's tables by name.

    Args:
        comparison: the content of ``comparison.json``.
    """
    return {
        "comparison.md": _document(comparison, _markdown),
        "comparison.tex": _document(comparison, _latex),
        "comparison.csv": _csv(comparison),
    }


def number(value: float, unit: str) -> str:
    """Return a figure as text, without its unit where that is in the heading."""
    if unit == "share":
        return f"{100 * value:.1f}"
    if unit == "bytes":
        return size(value)
    return f"{value:.3f}" if unit == "number" else f"{value:.2f}"


def cell(row: Facts, unit: str) -> str:
    """Return mean ± deviation: over seeds where there are several, else over students."""
    deviation = row["std_seeds"] if row["seeds"] > 1 else row["std_students"]
    text = number(row["mean"], unit)
    if unit == "bytes" or max(row["seeds"], row["students"]) < 2:
        return text
    return f"{text} ± {number(deviation, unit)}"


def difference(row: Facts, unit: str) -> str:
    """Return the paired difference from the baseline with its bootstrap interval."""
    gap = row["difference"]
    if gap is None or unit == "bytes":
        return "–"
    scale = 100 if unit == "share" else 1
    digits = 1 if unit == "share" else 3
    mean, low, high = (scale * gap[key] for key in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _caption(comparison: Facts) -> str:
    seeds, students = comparison["seeds"], comparison["students"]
    if seeds > 1:
        text = (
            f"Mean ± standard deviation over {seeds} distillation seeds, "
            f"{students} student(s) each; in the second column ± over the students of one set."
        )
    else:
        text = f"One distillation seed: ± is over {students} student(s) of one set."
    return (
        f"{text} Differences are paired with {comparison['baseline']}, with 95 % bootstrap "
        "intervals, which are too narrow for fewer than some ten seeds. Shares in percent."
    )


def _accuracy_grid(comparison: Facts) -> Grid:
    figures = comparison["evaluations"]["accuracy"]["figures"]
    papers = comparison["published"].get("accuracy", {})
    last = figures["last"]["rows"]
    heading = ["method", "last epoch", "± students", f"vs {comparison['baseline']} [95 %]"]
    grid = [[*heading, "best epoch", "κ", "s/image", *(["published"] if papers else [])]]
    for label in comparison["methods"]:
        row = [
            label,
            cell(last[label], "share"),
            number(last[label]["std_students"], "share"),
            difference(last[label], "share"),
            cell(figures["best"]["rows"][label], "share"),
            number(figures["kappa"]["rows"][label]["mean"], "number"),
            number(figures["seconds_per_image"]["rows"][label]["mean"], "seconds"),
        ]
        if papers:
            row.append(number(papers[label]["value"], "share") if label in papers else "–")
        grid.append(row)
    return grid


def _grid(comparison: Facts, name: str) -> Grid:
    """Return the table of an evaluation; its first figure also as a difference."""
    evaluation = comparison["evaluations"][name]
    figures = {key: evaluation["figures"][key] for key in evaluation["order"]}
    if not figures:
        return []
    papers = comparison["published"].get(next(iter(figures)), {})
    first = next(iter(figures.values()))
    heading = ["method", *(f"{one['title']}{_unit(one)}" for one in figures.values())]
    heading.insert(2, f"vs {comparison['baseline']} [95 %]")
    grid = [heading + (["published"] if papers else [])]
    for label in comparison["methods"]:
        row = [label]
        for figure in figures.values():
            own = figure["rows"].get(label)
            row.append(cell(own, figure["unit"]) if own else "–")
        own = first["rows"].get(label)
        row.insert(2, difference(own, first["unit"]) if own else "–")
        if papers:
            row.append(number(papers[label]["value"], "share") if label in papers else "–")
        grid.append(row)
    return grid


def _unit(figure: Facts) -> str:
    return {"share": ", %", "seconds": ", s"}.get(figure["unit"], "")


def _sweep_grid(comparison: Facts, sweep: Facts) -> Grid:
    """Return a sweep as a table: a column per evaluation's first figure."""
    shown = [
        one["figures"][one["order"][0]]
        for one in comparison["evaluations"].values()
        if one["order"]
    ]
    grid = [[sweep["setting"], *(f"{one['title']}{_unit(one)}" for one in shown)]]
    for point in sweep["points"]:
        cells = [cell(one["rows"][point["method"]], one["unit"]) for one in shown]
        grid.append([str(point["value"]), *cells])
    return grid


Render = Callable[[str, Grid], str]


def _document(comparison: Facts, render: Render) -> str:
    title = f"{comparison['title']}, {comparison['ipc']} images per class"
    parts = [render(f"{title}: accuracy of {comparison['student']}", _accuracy_grid(comparison))]
    for name in comparison["evaluations"]:
        if name != "accuracy" and (grid := _grid(comparison, name)):
            parts.append(render(f"{title}: {name}", grid))
    for sweep in comparison["sweeps"]:
        grid = _sweep_grid(comparison, sweep)
        parts.append(render(f"{title}: {sweep['method']}, {sweep['setting']}", grid))
    notes = [_caption(comparison)]
    for one in comparison["evaluations"].values():
        notes += one["notes"]
    if comparison["published"]:
        sources = {
            number["source"]
            for rows in comparison["published"].values()
            for number in rows.values()
        }
        notes.append(
            f"Published: {'; '.join(sorted(sources))}; best test accuracy over four presets."
        )
    mark = "% " if render is _latex else ""
    return "\n\n".join([*parts, "\n".join(f"{mark}{note}" for note in dict.fromkeys(notes))]) + "\n"


def _markdown(title: str, grid: Grid) -> str:
    lines = [f"**{title}**", "", _line(grid[0])]
    lines.append("|---|" + "---:|" * (len(grid[0]) - 1))
    return "\n".join([*lines, *(_line(row) for row in grid[1:])])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '∣') for text in cells)} |"


_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "±": r"$\pm$",
    "κ": r"$\kappa$",
    "–": "--",
    "−": "$-$",
}


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _latex(title: str, grid: Grid) -> str:
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in grid]
    columns = "l" + "r" * (len(grid[0]) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            rows[0],
            r"\hline",
            *rows[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


_FIELDS = ("mean", "std_seeds", "std_students", "seeds", "students")
_GAPS = ("mean", "low", "high", "t_low", "t_high")


def _csv(comparison: Facts) -> str:
    """Return every figure of every row, one per line, shares as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    gaps = [f"difference_{name}" for name in _GAPS]
    writer.writerow(["evaluation", "figure", "unit", "method", *_FIELDS, *gaps, "published"])
    for name, evaluation in comparison["evaluations"].items():
        for key, figure in evaluation["figures"].items():
            measure = "accuracy" if (name, key) == ("accuracy", "best") else key
            papers = comparison["published"].get(measure, {})
            for label, row in figure["rows"].items():
                gap = row["difference"] or {}
                writer.writerow(
                    [name, key, figure["unit"], label]
                    + [row[field] for field in _FIELDS]
                    + [gap.get(field, "") for field in _GAPS]
                    + [papers[label]["value"] if label in papers else ""]
                )
    return out.getvalue()
