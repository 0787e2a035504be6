"""The results of ``reta evaluate``: headline figures, notes, and details drawn or tabulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from markupsafe import Markup

from reta.reporting import audited, words
from reta.reporting.album import Shot
from reta.reporting.charts import Row, dot_chart
from reta.reporting.measured import UNFOLDED, drawn, numbers, written
from reta.reporting.reading import Facts, Run
from reta.reporting.svg import whole_percent

# In the order a reader wants them; what is not named comes after.
ORDER = ("corruptions", "continual", "ranking", "architectures", "diversity", "efficiency")
LAST = ("audit",)
_TITLES = {
    "architectures": "Other architectures",
    "audit": "Audit: what is left of real images",
    "continual": "Continual learning",
    "corruptions": "Corruptions",
    "diversity": "Diversity",
    "efficiency": "Efficiency",
    "ranking": "Ranking scores",
}
_MOST_ROWS, _MOST_BARS, _DEPTH = 1000, 20, 3


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    caption: str
    titles: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """One evaluation as the page shows it."""

    name: str
    title: str
    figures: list[list[str]]
    notes: list[str]
    charts: list[Markup]
    tables: list[Table]
    settings: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[Shot] = field(default_factory=list)


def sections(run: Run) -> list[Section]:
    """Return the evaluations of a run, in the order a reader wants them; the audit last."""
    known = run.evaluations
    rest = sorted(set(known) - {*ORDER, *LAST})
    return [_section(run, name, known[name]) for name in (*ORDER, *rest, *LAST) if name in known]


def title_of(name: str) -> str:
    """Return what to call an evaluation."""
    return _TITLES.get(name, name.replace("-", " ").replace("_", " ").capitalize())


def _section(run: Run, name: str, facts: Facts) -> Section:
    details = facts.get("details") or {}
    audit = name == "audit"
    charts = audited.charts(details) if audit else drawn(name, details)
    arranged = audited.table(details) if audit else UNFOLDED.get(name, dict)(details)
    charts += [] if charts else [_figure_chart(facts)]
    settings = [(key, text_of(value)) for key, value in (facts.get("settings") or {}).items()]
    if facts.get("student"):
        settings.insert(0, ("student", text_of(facts["student"])))
    return Section(
        name=name,
        title=title_of(name),
        figures=figure_rows(facts),
        notes=[str(note) for note in facts.get("notes") or []],
        charts=[chart for chart in charts if chart],
        tables=tables_of("Details", arranged),
        pairs=audited.pairs(run, details) if audit else [],
        settings=[(key, value) for key, value in settings if value],
    )


def figure_rows(facts: Facts) -> list[list[str]]:
    """Return a row per headline figure: what it is, its value, which way is better."""
    rows = []
    for name, found in _ordered(facts):
        values = numbers(found.get("values"))
        if values:
            better = {"higher": "higher is better", "lower": "lower is better"}
            told = better.get(str(found.get("better")), "")
            title, unit = str(found.get("title") or name), str(found.get("unit"))
            rows.append([title, written(unit, values), told])
    return rows


def _ordered(facts: Facts) -> list[tuple[str, Facts]]:
    """Return the headline figures, the most important first."""
    figures = facts.get("figures") or {}
    order = [name for name in facts.get("order") or [] if name in figures]
    return [(name, figures[name]) for name in dict.fromkeys([*order, *figures])]


def _figure_chart(facts: Facts) -> Markup:
    """Return the shares among the headline figures as bars."""
    rows = []
    for name, found in _ordered(facts):
        values = numbers(found.get("values"))
        if values and found.get("unit") == "share":
            title = str(found.get("title") or name)
            deviation = stdev(values) if len(values) > 1 else None
            rows.append(Row(title, mean(values), written("share", values), spread=deviation))
    if len(rows) < 2:
        return Markup("")
    return dot_chart("Figures", rows[:_MOST_BARS], "", bars=True, format_x=whole_percent)


def text_of(value: object) -> str:
    """Return a JSON value as a person would write it in one cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return words.count(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return words.number(value)
    if isinstance(value, list):
        found = numbers(value)
        if len(found) == len(value) > 1 and any(isinstance(item, float) for item in value):
            return written("number", found)
        return ", ".join(text_of(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text_of(item)}" for key, item in value.items() if item != "")
    return str(value)


def tables_of(caption: str, value: object, depth: int = 0) -> list[Table]:
    """Return any JSON value as tables: rows of records, records of records, or pairs."""
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return [_records(caption, "", [(str(i + 1), row) for i, row in enumerate(value)])]
    if not isinstance(value, Mapping) or not value:
        return []
    inner = list(value.items())
    flat = all(
        isinstance(row, Mapping) and not any(isinstance(x, Mapping) for x in row.values())
        for _, row in inner
    )
    if flat and len(inner) > 1:
        return [_records(caption, "name", [(str(name), row) for name, row in inner])]
    plain = [
        [str(name).replace("_", " "), text_of(item)]
        for name, item in inner
        if not _tabular(item) or depth >= _DEPTH
    ]
    tables = [Table(caption, ["what", "value"], plain[:_MOST_ROWS])] if plain else []
    for name, item in inner:
        if _tabular(item) and depth < _DEPTH:
            tables += tables_of(str(name).replace("_", " ").capitalize(), item, depth + 1)
    return tables


def _tabular(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _records(caption: str, first: str, rows: list[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return a table with a column for every key of the records."""
    keys = list(dict.fromkeys(key for _, row in rows for key in row))
    # A record that names itself needs no number.
    named = next((key for key in ("class", "name", "corruption") if key in keys), None)
    if named and not first:
        keys.remove(named)
        lines = [[text_of(row.get(named)), *(text_of(row.get(k)) for k in keys)] for _, row in rows]
        return Table(caption, [named, *_titles(keys)], lines[:_MOST_ROWS])
    lines = [[name, *(text_of(row.get(key)) for key in keys)] for name, row in rows]
    return Table(caption, [first or "no.", *_titles(keys)], lines[:_MOST_ROWS])


def _titles(keys: Sequence[str]) -> list[str]:
    return [str(key).replace("_", " ") for key in keys]
