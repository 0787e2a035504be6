"""Commands that list what there is: methods, evaluations, presets."""

from __future__ import annotations

import inspect

import yaml
from rich.table import Table
from tyro.conf import Positional

from reta.cli.terminal import out, say


def methods(name: Positional[str | None] = None) -> None:
    """List the methods, or every setting of one.

    Args:
        name: a method.
    """
    from reta.config import describe
    from reta.errors import unknown
    from reta.methods import METHODS

    if name is None:
        table = Table("method", "what it does", "source", box=None)
        for method, recipe in METHODS.items():
            table.add_row(method, recipe.summary, recipe.source)
        out.print(table)
        return
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    recipe = METHODS[name]
    settings = describe(recipe)
    if recipe.engine is not None:  # of the other parts it uses the start alone
        parts = ("type", "summary", "source", "start", "engine")
        settings = {part: settings[part] for part in parts}
        module = inspect.getmodule(type(recipe.engine))
        say(f"{inspect.getdoc(module)}\n\n{inspect.getdoc(type(recipe.engine))}\n")
    say(yaml.safe_dump(settings, sort_keys=False).rstrip())


def evaluations(name: Positional[str | None] = None) -> None:
    """List what can be measured of a distilled set, or every setting of one evaluation.

    Args:
        name: an evaluation.
    """
    from reta.config import describe
    from reta.errors import unknown
    from reta.evaluation.catalogue import EVALUATIONS, summary

    if name is None:
        table = Table("evaluation", "what it measures", box=None)
        table.add_row("accuracy", "Accuracy of students on unseen real images (Table 1)")
        for one, evaluation in EVALUATIONS.items():
            table.add_row(one, summary(evaluation))
        out.print(table)
        return
    if name not in EVALUATIONS:
        raise unknown("evaluation", name, EVALUATIONS)
    say(inspect.getdoc(type(EVALUATIONS[name])) or "")
    settings = {key: value for key, value in describe(EVALUATIONS[name]).items() if key != "type"}
    if settings:
        say("\n" + yaml.safe_dump(settings, sort_keys=False).rstrip())


def presets() -> None:
    """List the presets: settings of the paper's tables and of small trials, for --preset NAME."""
    from reta.config import preset_names, preset_title

    table = Table("preset", "what it is", box=None)
    for name in preset_names():
        table.add_row(name, preset_title(name))
    out.print(table)
    say("use one:  reta distill DATA --preset NAME    try it first:  … --effort smoke")
