"""What commands share: the types of their options, and settings written as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from reta.config import Config, setting_of, value_of
from reta.errors import UsageError

Track = Literal["tensorboard", "wandb", "trackio"] | None
Cluster = Annotated[str | None, arg(metavar="ADDRESS")]
Preset = Annotated[str | None, arg(name="preset", metavar="NAME")]
Set = Annotated[tuple[str, ...], UseAppendAction, arg(name="set", metavar="PART.FIELD=VALUE")]
Sweeps = Annotated[
    tuple[str, ...], UseAppendAction, arg(name="sweep", metavar="PART.FIELD=VALUE,…")
]


def options_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Return dotted settings from words like ``connection.trade_off=0.2``."""
    return dict(map(setting_of, pairs))


def sweeps_of(words: Sequence[str]) -> dict[str, list[Any]]:
    """Return settings and values from words like ``connection.trade_off=0,0.1,1``."""
    found = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise UsageError(f"--sweep {word}: write it as PART.FIELD=VALUE,VALUE,…")
        found[name] = [value_of(value) for value in values.split(",")]
    return found


def asked(config: Config, pairs: Sequence[str]) -> Config:
    """Return the settings with full paths and the method's own settings."""
    return replace(located(config), options={**config.options, **options_of(pairs)})


def located(config: Config) -> Config:
    """Return the settings with a data folder's full path, so that they hold anywhere."""
    path = Path(config.data).expanduser()
    if config.teachers:
        from reta.teachers import located as in_place

        config = replace(config, teachers=in_place(config.teachers))
    return replace(config, data=str(path.resolve())) if path.exists() else config
