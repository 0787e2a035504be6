"""Where units of work are done: one after the other here, or on many machines (`reta.cluster`).

A stage is a function of what its units share and of one unit. It opens the run folder, does that
unit and leaves its record there; whoever needs the result reads the record. So an executor moves
no results, and it does not matter where, in which order, or how often a unit is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from reta import tracking
from reta.errors import DivergedError, RetaError, UnfinishedError
from reta.progress import log
from reta.runtime import Device, choose_device

S = TypeVar("S")
U = TypeVar("U")


class Executor(ABC):
    """Does units of work and remembers the ones it gave up, so that one does not stop the others.

    Attributes:
        failures: the unit, in words, and its error.
    """

    def __init__(self) -> None:
        self.failures: dict[str, RetaError] = {}

    def device(self, requested: str) -> Device:
        """Return where the units' tensors will live; see `choose_device`."""
        return choose_device(requested)

    @abstractmethod
    def run(
        self, stage: str, work: Callable[[S, U], None], shared: S, units: Sequence[U]
    ) -> list[U]:
        """Do all units of a stage.

        Args:
            stage: its name, for people.
            work: a function of a module, called with ``shared`` and one unit. It may be called
                more than once for a unit, so it must leave the same bytes each time.
            shared: what all units need; not changed by them.
            units: what to do; ``str(unit)`` names it to people.

        Returns:
            The units that were given up; the others are done.

        Raises:
            RetaError: at once, for an error that other units would meet too (a full disk, damaged
                images).
        """

    def check(self) -> None:
        """Raise what went wrong, now that everything else is done.

        Raises:
            DivergedError: if all units that were given up diverged.
            UnfinishedError: if some failed in another way.
        """
        if not self.failures:
            return
        errors = list(self.failures.values())
        said = "; ".join(f"{unit}: {error}" for unit, error in self.failures.items())
        kind = DivergedError if all(isinstance(e, DivergedError) for e in errors) else None
        self.failures = {}
        raise (kind or UnfinishedError)(
            f"{len(errors)} unit{'s' if len(errors) > 1 else ''} of work given up ({said}); "
            "the others are done and kept: the same command tries again"
        ) from errors[0]


class Serial(Executor):
    """Does one unit after the other in this process."""

    def run(
        self, stage: str, work: Callable[[S, U], None], shared: S, units: Sequence[U]
    ) -> list[U]:
        """Do all units of a stage, see `Executor.run`."""
        failed = []
        for number, unit in enumerate(units, 1):
            if len(units) > 1:
                log.info("%s %d of %d: %s", stage, number, len(units), unit)
            try:
                with tracking.unit(f"{stage} {unit}"):
                    work(shared, unit)
            except DivergedError as error:
                self.failures[f"{stage} {unit}"] = error
                failed.append(unit)
        return failed
