"""The table of a comparison: which method leads, and which the runs cannot tell from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reta.reporting import words
from reta.reporting.reading import Facts, figure


@dataclass(frozen=True)
class Column:
    """One column of the table: what it is called, how a row is written, what is better."""

    title: str
    name: str
    write: Callable[[Facts], str]
    better: Callable[[list[float]], float] | None = None


def _number(name: str) -> Callable[[Facts], str]:
    return lambda row: words.number(figure(row, name))


def accuracy(which: str) -> Callable[[Facts], str]:
    """Return how to write the ``last`` or ``best`` accuracy of a row."""
    return lambda row: words.spread(
        figure(row, f"{which}_mean"), figure(row, f"{which}_std"), int(row.get("n") or 0)
    )


_COLUMNS = (
    Column("Last epoch", "last_mean", accuracy("last"), max),
    Column("Best epoch", "best_mean", accuracy("best"), max),
    Column("Students", "n", lambda row: words.count(figure(row, "n"))),
    Column("Contraction gap κ", "kappa_mean", _number("kappa_mean")),
    Column("Contraction ratio", "contraction_ratio", _number("contraction_ratio")),
    Column("Different anchors", "distinct_anchors", _number("distinct_anchors")),
    Column(
        "Time per image",
        "seconds_per_image",
        lambda row: words.duration(figure(row, "seconds_per_image")),
    ),
    Column("Images", "bytes_images", lambda row: words.size(figure(row, "bytes_images"))),
    Column("Labels", "bytes_labels", lambda row: words.size(figure(row, "bytes_labels"))),
)


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    text: str
    best: bool = False
    close: bool = False


def table(rows: list[Facts]) -> tuple[list[str], list[tuple[Facts, list[Cell]]]]:
    """Return the titles and rows of the table; columns nobody has a value for are left out."""
    columns = [
        column for column in _COLUMNS if any(figure(row, column.name) is not None for row in rows)
    ]
    best = {column.name: _best(column, rows) for column in columns}
    written = []
    for row in rows:
        cells = []
        for column in columns:
            value = figure(row, column.name)
            leads = value is not None and value == best[column.name]
            close = column.name == "last_mean" and not leads and overlaps(row, rows)
            cells.append(Cell(column.write(row), leads, close))
        written.append((row, cells))
    return [column.title for column in columns], written


def _best(column: Column, rows: list[Facts]) -> float | None:
    values = [value for row in rows if (value := figure(row, column.name)) is not None]
    # Where all agree, or one stands alone, there is nothing to point out.
    return column.better(values) if column.better and len(set(values)) > 1 else None


def leader(rows: list[Facts]) -> Facts | None:
    """Return the row of the highest last-epoch accuracy."""
    known = [row for row in rows if figure(row, "last_mean") is not None]
    return max(known, key=lambda row: figure(row, "last_mean") or 0.0, default=None)


def overlaps(row: Facts, rows: list[Facts]) -> bool:
    """Whether the interval mean ± std of a row reaches that of the best row."""
    first = leader(rows)
    value, best = figure(row, "last_mean"), figure(first, "last_mean")
    if value is None or best is None:
        return False
    reach = (figure(row, "last_std") or 0.0) + (figure(first, "last_std") or 0.0)
    return best - value <= reach
