"""The rows of a comparison: methods, some with settings of their own, and sweeps of a setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reta.config import Config, setting_of
from reta.errors import UsageError
from reta.methods import METHODS
from reta.preparation import recipe_of


@dataclass(frozen=True)
class Variant:
    """A row of the table: a method, or a method with one setting changed.

    Attributes:
        label: how it is called.
        config: its settings.
    """

    label: str
    config: Config

    def run(self, seed: int, seeds: int) -> str:
        """Return the name of its run folder."""
        name = re.sub(r"[^\w.+=-]+", "-", self.label)
        return name if seeds == 1 else f"{name}-{seed}"


@dataclass(frozen=True)
class Sweep:
    """One setting of a method, varied while the others stay.

    Attributes:
        method: the method.
        setting: such as ``connection.trade_off``.
        points: each value with the label of its row.
    """

    method: str
    setting: str
    points: tuple[tuple[Any, str], ...]

    def json(self) -> dict[str, Any]:
        """Return the sweep as ``comparison.json`` keeps it."""
        points = [{"value": value, "method": label} for value, label in self.points]
        return {"method": self.method, "setting": self.setting, "points": points}


def variant_of(config: Config, words: str) -> Variant:
    """Return a row from the name of a method and settings of its own.

    Args:
        config: the settings all rows share.
        words: such as ``"reta connection.anchors=distinct topology.weight=1"``.

    Raises:
        UsageError: if a setting is not written ``PART.FIELD=VALUE``.
    """
    method, *own = words.split()
    options = {**_for_method(config, method).options, **dict(map(setting_of, own))}
    return Variant(" ".join([method, *own]), replace(config, method=method, options=options))


def swept(
    given: Sequence[Variant], sweep: Mapping[str, Sequence[Any]]
) -> tuple[list[Variant], list[Sweep]]:
    """Return the rows of the table, and which of them belong to a sweep.

    A value that is a row's own is no new row.

    Args:
        given: the rows asked for.
        sweep: settings and their values; each is varied by itself, for every row that has it.

    Raises:
        UsageError: if no row has a setting, or a value does not fit it.
    """
    variants = list(given)
    for variant in variants:
        recipe_of(variant.config)
    sweeps = []
    for setting, values in sweep.items():
        having = [one for one in given if _has(one.config.method, setting)]
        if not having:
            for one in given:  # a misspelt name is told with the nearest one
                if _has(one.config.method, setting.partition(".")[0]):
                    recipe_of(replace(one.config, options={setting: values[0]}))
            raise UsageError(f"none of these methods has {setting}")
        for one in having:
            points = []
            for value in values:
                changed = replace(one.config, options={**one.config.options, setting: value})
                same = recipe_of(changed) == recipe_of(one.config)
                label = one.label if same else f"{one.label} {setting}={value}"
                points.append((value, label))
                if not same and label not in {variant.label for variant in variants}:
                    variants.append(Variant(label, changed))
            sweeps.append(Sweep(one.label, setting, tuple(points)))
    return variants, sweeps


def _has(method: str, setting: str) -> bool:
    part: Any = METHODS[method]
    for name in setting.split("."):
        part = getattr(part, name, None)
    return part is not None


def _for_method(config: Config, method: str) -> Config:
    """Return the settings for one method: options of parts it does not have are left out."""
    recipe = METHODS.get(method)
    options = {
        name: value
        for name, value in config.options.items()
        if recipe is None or getattr(recipe, name.split(".")[0], "") is not None
    }
    return replace(config, method=method, options=options)
