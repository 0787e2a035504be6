"""What an evaluation returns: headline figures, details to draw, sentences to read them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Unit = Literal["share", "number", "seconds", "bytes"]


@dataclass(frozen=True)
class Curve:
    """Says that a figure is one point of a curve.

    Attributes:
        title: of the curve; figures of the same title lie on one.
        axis: what the curve runs over.
        at: where the figure lies.
    """

    title: str
    axis: str
    at: float


@dataclass(frozen=True)
class Figure:
    """One headline number of a distilled set.

    Attributes:
        title: what it is called in a table.
        values: one per student, in the order of their seeds; a single one where the number
            belongs to the set and not to a student.
        unit: a share is a fraction, shown in percent.
        better: which way is better, if either is.
        curve: where it lies on a curve, if it does.
    """

    title: str
    values: Sequence[float]
    unit: Unit = "share"
    better: Literal["higher", "lower"] | None = "higher"
    curve: Curve | None = None


@dataclass(frozen=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
        figures: headline numbers by name; a comparison tabulates them.
        details: everything else, plain JSON; documented in docs/run-folder.md.
        notes: sentences a reader needs beside the numbers.
    """

    figures: Mapping[str, Figure]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def json(self) -> dict[str, Any]:
        """Return plain JSON values; ``order`` names the figures, the most important first."""
        return {**asdict(self), "order": list(self.figures)}
