"""Curves sent to a tracking tool while they are made; off unless `tracking` is entered.

The numbers are those that a run folder keeps anyway: rows of losses, what each connection did, test
accuracy. Training code says them with `note`; where nobody tracks, that costs nothing. Units done
by another process, as on a cluster, are not tracked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from reta.errors import UsageError, unknown


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take some numbers, named ``unit/number``, of one step of that unit."""

    def close(self) -> None:
        """Write what is left."""


_tracker: ContextVar[Tracker | None] = ContextVar("tracker", default=None)
_unit: ContextVar[str] = ContextVar("unit", default="run")


def note(step: int, values: Mapping[str, float], part: str = "") -> None:
    """Pass numbers on to whoever tracks.

    Args:
        step: of the unit of work that is being done.
        values: by name.
        part: of the unit, such as a teacher.
    """
    tracker = _tracker.get()
    if tracker is not None:
        prefix = f"{_unit.get()}/{part}/" if part else f"{_unit.get()}/"
        tracker.log({prefix + name: value for name, value in values.items()}, step)


@contextmanager
def unit(name: str) -> Iterator[None]:
    """Name the unit of work whose numbers follow."""
    before = _unit.set(name.replace("/", "-"))
    try:
        yield
    finally:
        _unit.reset(before)


@contextmanager
def tracking(kind: str | None, folder: Path | str) -> Iterator[None]:
    """Send all numbers to a tool as long as this is entered.

    Args:
        kind: a name of `TRACKERS`, or None for no tracking.
        folder: the run folder; its name names the run, and files go beside it, or to ``runs`` if
            it is a URL.

    Raises:
        UsageError: if there is no such tool, or it is not installed.
    """
    if kind is None:
        yield
        return
    if kind not in TRACKERS:
        raise unknown("tracker", kind, TRACKERS)
    name = str(folder)
    home = Path("runs", name.rstrip("/").split("/")[-1]) if "://" in name else Path(name)
    home.parent.mkdir(parents=True, exist_ok=True)
    tracker = TRACKERS[kind](home.resolve())
    before = _tracker.set(tracker)
    try:
        yield
    finally:
        _tracker.reset(before)
        tracker.close()


def _optional(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fix = f"pip install 'reta[{extra}]'"
        raise UsageError(f"--track {extra} needs {module.split('.')[0]}: {fix}") from error


class TensorBoard:
    """Event files in ``tensorboard/RUN`` beside the run folder."""

    def __init__(self, folder: Path) -> None:
        _optional("tensorboard", "tensorboard")
        module = _optional("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(folder.parent / "tensorboard" / folder.name))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run of the project ``reta``; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, folder: Path) -> None:
        module = _optional("wandb", "wandb")
        self._run = module.init(project="reta", name=folder.name, dir=str(folder.parent))
        self._known: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers over the step of their own unit: its steps begin anew with each."""
        for axis in {name.split("/")[0] for name in values}:
            if axis not in self._known:
                self._known.add(axis)
                self._run.define_metric(f"{axis}/step", hidden=True)
                self._run.define_metric(f"{axis}/*", step_metric=f"{axis}/step")
            self._run.log({**values, f"{axis}/step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A run of the project ``reta`` in trackio's local database."""

    def __init__(self, folder: Path) -> None:
        self._module = _optional("trackio", "trackio")
        self._module.init(project="reta", name=folder.name, embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._module.finish()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
