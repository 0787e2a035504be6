"""Differences of rows from FADRM+, in points of accuracy, within a setting and over several.

Within a setting they are taken seed by seed, with Student's t over seeds. Over settings seeds are
resampled within each, or settings and seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from factors import BASELINE, GROUPS
from scipy.stats import t, ttest_ind

from reta.evaluation.uncertainty import paired_difference
from reta.methods import METHODS
from reta.runtime import random_generator
from reta.synthesis.retrieval import RetrievedAnchor

REAL = ("random", "medium", "typical")  # rows of images that were not optimised
RULE = METHODS["reta"].connection
DRAWN_START = "start.order=random"
DRAWN = f"{BASELINE} {DRAWN_START}"

FROM_DRAWN = {*GROUPS["drawn"], *GROUPS["drawn-cells"], f"reta {DRAWN_START}"}

Settings = Mapping[str, dict[str, Any]]
Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Gap:
    """A difference in points of accuracy with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        words = f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"
        return f"**{words}**" if self.low > 0 or self.high < 0 else words


def gaps(
    setting: Mapping[str, Any], row: str, base: str = BASELINE, figure: str = "last"
) -> list[float]:
    """Return the differences of a row from FADRM+, seed by seed, in points of accuracy."""
    pairs = paired(setting["rows"][row], setting["rows"][base])
    return [100 * (one[figure] - other[figure]) for one, other in pairs]


def paired(row: Cells, base: Cells) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the cells of two rows that share their teachers and their seed; others have none."""
    others = {(cell["committee"], cell["seed"]): cell for cell in base}
    keys = [(cell["committee"], cell["seed"]) for cell in row]
    return [(cell, others[key]) for cell, key in zip(row, keys, strict=True) if key in others]


def within(setting: Mapping[str, Any], row: str, base: str = BASELINE) -> Gap | None:
    """Return the difference of a row in one setting."""
    if row not in setting["rows"] or row == base:
        return None
    values = [[gap] for gap in gaps(setting, row, base)]
    found = paired_difference(values, [[0.0]] * len(values))
    return Gap(found.mean, found.t_low, found.t_high) if found else None


def over(settings: Iterable[Mapping[str, Any]], row: str, draws: int = 10_000) -> Gap | None:
    """Return the difference of a row over the settings that have it, each by its precision."""
    shown = [s for s in settings if row in s["rows"] and row != BASELINE and gaps(s, row)]
    if not shown:
        return None
    tables = [np.asarray(gaps(s, row)) for s in shown]
    # One deviation for all rows of a setting: that of a row alone is known from few seeds.
    weights = [len(x) / power(s)[0] ** 2 for s, x in zip(shown, tables, strict=True)]
    rng = random_generator(0, "bootstrap")
    means = [x[rng.integers(0, len(x), (draws, len(x)))].mean(axis=1) for x in tables]
    low, high = np.percentile(np.average(means, axis=0, weights=weights), [2.5, 97.5])
    middle = float(np.average([x.mean() for x in tables], weights=weights))
    return Gap(middle, float(low), float(high))


def over_settings(settings: Sequence[Mapping[str, Any]], row: str, base: str) -> Gap | None:
    """Return the mean over settings of a row's difference, each setting counting alike.

    The interval is of a bootstrap of settings, and of seeds within each.
    """
    tables = [np.asarray(gaps(s, row, base)) for s in settings if row in s["rows"]]
    if len(tables) < 2:
        return None
    rng = random_generator(0, "settings")
    means = []
    for _ in range(4000):
        chosen = [tables[index] for index in rng.integers(0, len(tables), len(tables))]
        means.append(mean(float(rng.choice(one, len(one)).mean()) for one in chosen))
    low, high = np.percentile(means, [2.5, 97.5])
    return Gap(mean(float(one.mean()) for one in tables), float(low), float(high))


def between(one: Mapping[str, Any], other: Mapping[str, Any], row: str) -> Gap:
    """Return how much more a row gains in one setting than in another, by Welch's t."""
    first, second = gaps(one, row), gaps(other, row)
    found = ttest_ind(first, second, equal_var=False).confidence_interval()
    return Gap(mean(first) - mean(second), float(found.low), float(found.high))


def power(setting: Mapping[str, Any]) -> tuple[float, float]:
    """Return the deviation of paired differences, and the gain found with 80 % power."""
    rows = set(setting["rows"]) - {BASELINE, *REAL, *FROM_DRAWN, *setting["same"]}
    seeds = len(setting["rows"][BASELINE])
    deviation = math.sqrt(mean(stdev(gaps(setting, row)) ** 2 for row in rows))
    reach = float(t.ppf(0.975, seeds - 1) + t.ppf(0.8, seeds - 1))
    return deviation, reach * deviation / math.sqrt(seeds)


def knows(setting: Mapping[str, Any]) -> bool:
    """Return whether the first teacher knows enough, of enough images, for `reta` to retrieve."""
    assert isinstance(RULE, RetrievedAnchor)
    enough: bool = setting["candidates"] >= RULE.least and setting["knowledge"] >= RULE.known
    return enough


def retrieves(setting: Mapping[str, Any]) -> bool:
    """Return whether `reta` retrieves in a setting."""
    assert isinstance(RULE, RetrievedAnchor)
    few = RULE.most is None or setting["config"]["ipc"] <= RULE.most
    return few and knows(setting)


def views(setting: Mapping[str, Any]) -> float:
    """Return how often teachers saw images of a class, for each image that was made of it."""
    config = setting["config"]
    seen: float = config["teacher_epochs"] * setting["candidates"] / config["ipc"]
    return seen


def column(setting: Mapping[str, Any]) -> str:
    """Return how a setting is headed."""
    return re.sub(r"-ipc(\d+)(.*)", r"\2 @\1", setting["setting"])
