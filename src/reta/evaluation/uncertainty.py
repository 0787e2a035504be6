"""How sure a mean is: spread over distillation seeds and over students, differences in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance

import numpy as np
from scipy.stats import t

from reta.runtime import random_generator

Values = Sequence[Sequence[float]]
"""One row per distillation seed, one value per student of that set."""


@dataclass(frozen=True)
class Spread:
    """A mean and where its scatter comes from.

    Attributes:
        mean: over seeds of the means over students.
        std_seeds: standard deviation of those means: another set of the same method.
        std_students: pooled standard deviation within a set: another student of the same set.
        seeds: distillation seeds.
        students: students per set.
    """

    mean: float
    std_seeds: float
    std_students: float
    seeds: int
    students: int


def spread(values: Values) -> Spread:
    """Return mean and spread; a deviation of a single value is 0."""
    means = [mean(own) for own in values]
    within = [variance(own) for own in values if len(own) > 1]
    return Spread(
        mean(means),
        stdev(means) if len(means) > 1 else 0.0,
        math.sqrt(mean(within)) if within else 0.0,
        len(values),
        len(values[0]),
    )


@dataclass(frozen=True)
class Difference:
    """Mean difference from a baseline with two 95 % intervals.

    Attributes:
        mean: of the paired differences.
        low, high: percentile bootstrap over seeds, then students, in pairs.
        t_low, t_high: Student's t over the differences of seed means; wider, and safer where
            there are few seeds. Equal to the bootstrap's where there is one seed.
    """

    mean: float
    low: float
    high: float
    t_low: float
    t_high: float


def paired_difference(values: Values, baseline: Values, draws: int = 4000) -> Difference | None:
    """Return the difference from a baseline whose seeds and students are the same ones.

    Methods share teachers and student seeds, so that differences are taken in pairs. With one
    seed only students are resampled: the interval says nothing then about another set.

    Args:
        values: of a method.
        baseline: of the baseline.
        draws: of the bootstrap.

    Returns:
        None if the two have other numbers of seeds or students.
    """
    if [len(own) for own in values] != [len(own) for own in baseline]:
        return None
    if len({len(own) for own in values}) > 1:
        return None
    gaps = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    seeds, students = gaps.shape
    rng = random_generator(0, "bootstrap")
    rows = rng.integers(0, seeds, (draws, seeds))
    columns = rng.integers(0, students, (draws, seeds, students))
    means = gaps[rows[:, :, None], columns].mean(axis=(1, 2))
    low, high = (float(value) for value in np.percentile(means, [2.5, 97.5]))
    if seeds == 1:
        return Difference(float(gaps.mean()), low, high, low, high)
    of_seeds = gaps.mean(axis=1)
    reach = float(t.ppf(0.975, seeds - 1)) * float(of_seeds.std(ddof=1)) / math.sqrt(seeds)
    middle = float(of_seeds.mean())
    return Difference(middle, low, high, middle - reach, middle + reach)
