"""DELT: some images of a class are optimised from the start, others join later.

Source: "DELT: A Simple Diversity-driven EarlyLate Training for Dataset Distillation" (CVPR 2025)
and its code. B steps are R rounds. The images of a class join in R parts, as equal as can be, the
larger ones first: image i from round

    r(i) = min { r : Σ_{q ≤ r} n_q > i },  n_q = ⌊ipc / R⌋ + [q < ipc mod R]

on, and stays to the end; so the first ones take B steps and the last ones B / R, and a set holds
images of all strengths for half the cost. All share one cosine, and one Adam whose moments of an
image are zero until it joins. The objective is SRe2L's (`reta.synthesis.matching`) on batches of
whole classes, with crops that shrink from whole images (`easy_first`) and no shifts.

The real images it starts from are those of medium difficulty. Ours: which of them come first is
FADRM's order here (nearest the median of the teacher's probability), so the first ones are the most
typical of the middle; and a round is at least one step. Labels and students are reta's, where the
authors ask the teacher while the student trains, on RandAugment.
"""

from __future__ import annotations

from dataclasses import dataclass

from reta.errors import UsageError
from reta.synthesis.schedule import Schedule


@dataclass(frozen=True)
class EarlyLate(Schedule):
    """A schedule whose images join round after round.

    Attributes:
        rounds: R; the paper has rounds of 500 steps.
    """

    rounds: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise UsageError(f"schedule.rounds is {self.rounds}; it must be at least 1")

    def active(self, step: int, ipc: int) -> int:
        """Return how many images of each class are optimised at a step: the first ones."""
        rounds = min(self.rounds, self.steps)
        current = min(step // (self.steps // rounds), rounds - 1)
        each, rest = divmod(ipc, rounds)
        return each * (current + 1) + min(rest, current + 1)
