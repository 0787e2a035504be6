"""The state of a unit of work under way, so that an interruption costs seconds and not the unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from reta.errors import DataError, DivergedError, Interrupted
from reta.progress import log
from reta.runtime import full_precision
from reta.storage import Unit
from reta.tensors import tensor_bytes, tensors_of

T = TypeVar("T")

RESTARTS = 3
"""How often a unit that diverged is begun anew before it is given up."""


@dataclass(frozen=True)
class State:
    """Everything that decides how a unit goes on.

    Attributes:
        tensors: by name, on any device.
        facts: JSON values.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint:
    """Keeps the state of a unit: every 30 seconds, and when a signal asks the work to stop.

    It costs at most a hundredth of the time: the larger a state is, the less often it is written.
    Work that is resumed from it must end with the same bytes as work that was never interrupted.

    Args:
        unit: whose state it is; without one, nothing is kept.

    Attributes:
        every: least seconds between two writes.
        share: of the time that may be spent writing.
        failures: how earlier attempts at this unit diverged; each makes the next one more careful.
    """

    every = 30.0
    share = 0.01

    def __init__(self, unit: Unit | None = None) -> None:
        self._unit = unit
        self._wait = self.every
        self._saved = time.monotonic()
        self._state = self._read()
        self.failures: list[str] = [] if self._state is None else self._state.facts["failures"]

    def _read(self) -> State | None:
        data = self._unit.kept() if self._unit else None
        try:
            return (data and State(*tensors_of(data, "the kept state"))) or None
        except DataError:
            return None

    @property
    def caution(self) -> float:
        """Share of the learning rate to work with: it is halved by every divergence."""
        return 0.5 ** len(self.failures)

    def load(self) -> State | None:
        """Return the state that an earlier process left of this unit, or None.

        A state that was damaged, or belongs to other inputs, counts as none.
        """
        state, self._state = self._state, None
        if state is None or not state.tensors:
            return None
        if self._unit:
            log.info("%s continues where it was interrupted", self._unit.name)
        return state

    def save(self, state: State) -> None:
        """Write a state.

        Raises:
            DivergedError: if it holds NaN or infinity, from which nothing can go on.
        """
        if self._unit is None:
            return
        started = time.monotonic()
        for name, tensor in state.tensors.items():
            if not torch.isfinite(tensor).all():
                raise DivergedError(f"{self._unit.name}: {name} became NaN or infinite")
        facts = {**state.facts, "failures": self.failures}
        self._unit.keep(tensor_bytes(state.tensors, facts))
        self._saved = time.monotonic()
        self._wait = max(self.every, (self._saved - started) / self.share)

    @contextmanager
    def keeping(self, state: Callable[[], State]) -> Iterator[Callable[[], None]]:
        """Keep the state of the work in the block, whenever that is due and on an interruption.

        Args:
            state: returns the state. It is called between two steps, by the function that is
                yielded, and wherever in the block `interruption.check` is; so a step changes what
                the state is made of at its very end.

        Yields:
            a function to be called between two steps; it writes the state if it is time to.
        """

        def offer() -> None:
            if time.monotonic() - self._saved >= self._wait:
                self.save(state())

        try:
            yield offer
        except Interrupted:
            self.save(state())
            raise


def attempt(unit: Unit, work: Callable[[Checkpoint], T]) -> tuple[T, list[str]]:
    """Do the work of a unit; if it diverges begin anew, more carefully, at most three times.

    Args:
        unit: its name and its kept state.
        work: does it at `Checkpoint.caution` of its learning rate; in float32 throughout from the
            first divergence on.

    Returns:
        what the work returned, and how it diverged before, to be recorded with the unit.

    Raises:
        DivergedError: if it diverged at every attempt.
    """
    while True:
        checkpoint = Checkpoint(unit)
        try:
            with full_precision() if checkpoint.failures else nullcontext():
                return work(checkpoint), checkpoint.failures
        except DivergedError as error:
            failures = [*checkpoint.failures, str(error)]
            if len(failures) > RESTARTS:
                unit.forget()
                raise DivergedError(
                    f"{unit.name} diverged {len(failures)} times, at last with "
                    f"1/{2**RESTARTS} of the learning rate: {error}"
                ) from error
            log.warning("%s: %s; begins anew at half the learning rate", unit.name, error)
            checkpoint.failures = failures
            checkpoint.save(State())


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser (moments, step counts) as named tensors."""
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimiser_tensors` returned, found among other tensors."""
    parameters = [part for group in optimiser.param_groups for part in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for path, tensor in tensors.items():
        if path.startswith("optimiser."):
            _, index, name = path.split(".", 2)
            owner = parameters[int(index)].detach()
            if tensor.shape == owner.shape:
                # In the parameter's memory layout, because a fused step goes through memory.
                tensor = torch.empty_like(owner).copy_(tensor)
            state.setdefault(int(index), {})[name] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
