"""A run is never continued with settings it was not begun with, whichever of them changed."""

import dataclasses
import typing
from pathlib import Path

import pytest

from reta.config import Config, describe
from reta.data.sources import Source
from reta.errors import UsageError
from reta.methods import METHODS
from reta.pipeline import _FREE, keep_config, run_folder
from reta.preparation import open_data
from reta.storage import RunFolder

CONFIG = Config("digits", classes=2, per_class=12, teachers=("convnet3",))


@pytest.fixture(scope="module")
def source() -> Source:
    return open_data(CONFIG)


def begin(folder: Path, source: Source, config: Config = CONFIG) -> RunFolder:
    """Begin a run: its settings are kept, and something was finished."""
    run = RunFolder(folder)
    keep_config(run, config, source)
    run.unit("pool", 1).finish()
    return run


def other(value: object, hint: object) -> object:
    """Return another value of a setting's type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return (value / 2 or 0.1) if isinstance(value, float) else value + 1
    if isinstance(value, tuple):
        return (*value, "convnet4") if value and isinstance(value[0], str) else value[::-1]
    choices = [x for part in (hint, *typing.get_args(hint)) for x in typing.get_args(part)]
    named = [x for x in choices if isinstance(x, str) and x != value]
    if named:
        return named[0]
    if isinstance(value, str):
        return value + "x"
    wanted = {bool: True, int: 3, float: 0.5, str: "convnet4"}
    return next((wanted[x] for x in typing.get_args(hint) if x in wanted), ("convnet4",))


FIELDS = [field.name for field in dataclasses.fields(Config) if field.name != "options"]


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_refused_by_name_or_free(name, source, tmp_path):
    """Breaks when a new setting that decides the bytes may change half-way through a run."""
    run = begin(tmp_path, source)
    changed = other(getattr(CONFIG, name), typing.get_type_hints(Config)[name])
    assert changed != getattr(CONFIG, name)
    config = dataclasses.replace(CONFIG, **{name: changed})
    if name in _FREE:
        keep_config(run, config, source)
    else:
        with pytest.raises(UsageError, match=f"begun with {name} = "):
            keep_config(run, config, source)


def leaves(value: typing.Any, path: str = "") -> typing.Iterator[tuple[str, object]]:
    for name, part in value.items():
        if isinstance(part, dict):
            yield from leaves(part, f"{path}{name}.")
        elif name != "type":
            yield f"{path}{name}", part


@pytest.mark.parametrize("method", ["reta-paper", "sre2l"])
def test_every_option_of_a_method_is_refused_by_name(method, source, tmp_path):
    """Breaks when an option of a part may change half-way through a run."""
    names = dict(leaves(describe(METHODS[method])))
    assert len(names) > 8
    for index, (name, value) in enumerate(names.items()):
        config = dataclasses.replace(CONFIG, method=method, options={name: value})
        run = begin(tmp_path / str(index), source, config)
        keep_config(run, config, source)
        for options in ({}, {name: "changed"}):
            with pytest.raises(UsageError, match=f"begun with {name} = "):
                keep_config(run, dataclasses.replace(config, options=options), source)


def test_force_begins_beside_and_finds_its_way_back(source, tmp_path):
    """Breaks when --force mixes two runs, or cannot continue the folder it made itself."""
    out = tmp_path / "run-1"
    begin(out, source)
    assert run_folder(out, CONFIG, source, force=True).path == out
    three = dataclasses.replace(CONFIG, ipc=3)
    with pytest.raises(UsageError, match="begun with ipc = 10, not 3"):
        run_folder(out, three, source)
    beside = run_folder(out, three, source, force=True)
    assert beside.path == tmp_path / "run-1-2"
    begin(beside.path, source, three)
    assert run_folder(out, three, source, force=True).path == beside.path
    four = dataclasses.replace(CONFIG, ipc=4)
    assert run_folder(out, four, source, force=True).path == tmp_path / "run-1-3"


def test_another_precision_is_refused_by_name(source, tmp_path, monkeypatch):
    """Breaks when RETA_PRECISION, which changes bytes, may change half-way through a run."""
    keep_config(RunFolder(tmp_path / "empty"), CONFIG, source)
    run = begin(tmp_path / "begun", source)
    monkeypatch.setenv("RETA_PRECISION", "full")
    with pytest.raises(UsageError, match="begun with RETA_PRECISION = '', not 'full'"):
        keep_config(run, CONFIG, source)
    assert run_folder(run.path, CONFIG, source, force=True).path == tmp_path / "begun-2"
    empty = begin(tmp_path / "empty", source)  # nothing was finished there: it takes the new one
    keep_config(empty, CONFIG, source)
    monkeypatch.delenv("RETA_PRECISION")
    keep_config(run, CONFIG, source)
    with pytest.raises(UsageError, match="begun with RETA_PRECISION = 'full', not ''"):
        keep_config(empty, CONFIG, source)
