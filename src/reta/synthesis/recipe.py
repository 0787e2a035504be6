"""A method is a value: what it starts from, matches, connects and keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.connection import Connection
from reta.synthesis.cvdd import Voting
from reta.synthesis.engine import Engine
from reta.synthesis.matching import Matching
from reta.synthesis.nrrdd import CriticalRegions
from reta.synthesis.schedule import Schedule
from reta.synthesis.start import Start


@dataclass(frozen=True)
class OwnTraining:
    """How the authors of a method train students, where they do not as FADRM does.

    Attributes:
        learning_rate: of AdamW.
        stretch: η, the cosine runs over η times the epochs.
        loss: of soft labels, see `reta.training.Protocol`.
        hard_weight: weight of the cross-entropy beside it.
        ema: decay of the running mean of the weights that is measured in their place.
    """

    learning_rate: float = 1e-3
    stretch: float = 1.0
    loss: Literal["kl", "mse"] = "kl"
    hard_weight: float = 0.0
    ema: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A distillation method.

    Attributes:
        summary: one line for people.
        source: paper or repository the settings come from.
        start: what the images start from.
        schedule: the optimisation budget; None leaves the start images as they are.
        objective: what the pixels are optimised against.
        connection: which real images are blended in between blocks, if any.
        topology: the topology term, if any.
        preserve: which pixels stay as they were at the start, if any.
        committee: whether all teachers take turns or only the first one is used. Labels always
            come from the whole committee, so that methods differ in their images alone.
        votes: how the committee's logits become one label: their mean, unless asked otherwise.
        training: how its authors train students; asked for by ``--protocol own`` only, because
            methods are compared under one protocol.
        engine: makes the images instead of the decoupled loop, for a method that is none of its
            variations; of the other parts it uses the start alone.
    """

    summary: str
    source: str
    start: Start
    schedule: Schedule | None = None
    objective: Matching = field(default_factory=Matching)
    connection: Connection | None = None
    topology: TopologyAlignment | None = None
    preserve: CriticalRegions | None = None
    committee: Literal["all", "first"] = "all"
    votes: Voting = field(default_factory=Voting)
    training: OwnTraining | None = None
    engine: Engine | None = None

    @property
    def steps(self) -> int:
        """Optimisation steps on each block of classes; 0 leaves the start images as they are."""
        if self.engine is not None:
            return self.engine.steps
        return 0 if self.schedule is None else self.schedule.steps
