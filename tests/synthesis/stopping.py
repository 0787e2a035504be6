"""A checkpoint in memory that interrupts the work after some steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reta.checkpoint import Checkpoint, State
from reta.interruption import Interrupted


class Stopping(Checkpoint):
    """Keeps the state and raises, as a signal between two steps does."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.kept: State | None = None

    def load(self) -> State | None:
        return self.kept

    @contextmanager
    def keeping(self, state: Callable[[], State]) -> Iterator[Callable[[], None]]:
        def offer() -> None:
            self.steps -= 1
            if self.steps < 0:
                found = state()
                tensors = {name: value.clone() for name, value in found.tensors.items()}
                self.kept = State(tensors, found.facts)
                raise Interrupted(15)

        yield offer
