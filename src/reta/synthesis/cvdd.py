"""CV-DD: every image is optimised against a small committee whose members vote with weights.

Source: "Dataset Distillation via Committee Voting" and its code. For the image j of each class, two
teachers (the pairs of the committee in turn; the best two where there is one image per class) give

    L_j = Σ_t w_t ( CE(t(a(x)), y) + β · Σ_l w_l ( ‖μ_l − μ̂_l‖₂ + ‖v_l − v̂_l‖₂ ) )
    w_t = exp(p_t / τ) / Σ_u exp(p_u / τ),  τ = 5

where p_t is the prior of teacher t in percent: what a student reached that was trained on images
distilled with t alone. Batch-specific soft labels (BSSL: teachers label under the statistics of the
student's own micro-batch) are how reta labels for every method; the authors weigh the logits there
too, τ = 10, see `Voting`.

Ours: a prior that is not given is how many random crops of training images the teacher recognises,
because a student per teacher would cost a distillation each and choose on test images; at 50
images per class the authors draw pairs at random, here they take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch

from reta.data.augment import random_views, render
from reta.errors import UsageError
from reta.memory import Passes
from reta.models import Classifier
from reta.runtime import random_generator
from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.matching import Matcher, Matching, Scene, Turn
from reta.synthesis.pool import Pool

_CROPS = 1000  # that decide a prior which is not given


@dataclass(frozen=True)
class CommitteeVoting(Matching):
    """The decoupled objective of several teachers at once, weighted by their priors.

    Attributes:
        voters: teachers that vote on an image.
        temperature: τ of their weights.
        prior: p in percent by architecture; None measures it on crops of training images.
    """

    voters: int = 2
    temperature: float = 5.0
    prior: Mapping[str, float] | None = None

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that priors take which are not given, see `Looking`."""
        crops = 0 if self.prior else min(_CROPS, extent.real)
        return Forwards("seen", extent.teachers * crops)

    def at_work(self, scene: Scene) -> Matcher:
        """Return the objective at work on a block of classes."""
        return _Vote(self, scene)


class _Vote(Matcher):
    def __init__(self, objective: CommitteeVoting, scene: Scene) -> None:
        super().__init__(objective, scene)
        teachers = [probe.teacher for probe in scene.probes]
        self._prior = priors(teachers, scene.pool, scene.seed, objective.prior)
        self._sets = voters(self._prior, objective.voters, scene.ipc)
        self._temperature = objective.temperature

    @property
    def turns(self) -> int:
        """All are asked at every step."""
        return 1

    def asked(self, step: int) -> list[int]:
        """Return which teachers are asked at a step: all that vote on some image."""
        return sorted({one for own in self._sets for one in own})

    def __call__(self, images: torch.Tensor, turn: Turn) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return the weighted sum of what each voter says, see `Matcher`."""
        sets = [self._sets[group % len(self._sets)] for group in turn.groups]
        loss, gap = images.new_zeros(len(sets)), images.new_zeros(len(sets))
        for teacher in sorted({one for own in sets for one in own}):
            rows = [row for row, own in enumerate(sets) if teacher in own]
            own_loss, own_gap = self.objective(
                self.scene.probes[teacher], images[rows], turn.labels
            )
            weights = own_loss.new_tensor(
                [
                    vote_weights([self._prior[one] for one in sets[row]], self._temperature)[
                        sets[row].index(teacher)
                    ]
                    for row in rows
                ]
            )
            where = torch.tensor(rows, device=images.device)
            loss = loss.index_add(0, where, weights * own_loss)
            gap = gap.index_add(0, where, weights * own_gap)
        return loss, gap, None


def voters(prior: Sequence[float], count: int, ipc: int) -> list[tuple[int, ...]]:
    """Return which teachers vote on the first, second … image of each class; then from the start.

    Args:
        prior: of each teacher.
        count: voters on an image.
        ipc: images per class.
    """
    count = min(count, len(prior))
    if ipc == 1:
        best = sorted(range(len(prior)), key=lambda index: -prior[index])[:count]
        return [tuple(sorted(best))]
    return list(combinations(range(len(prior)), count))


def vote_weights(prior: Sequence[float], temperature: float) -> list[float]:
    """Return softmax(p / τ) of the priors, in percent, of those who vote."""
    weights: list[float] = (
        (torch.tensor(prior, dtype=torch.float64) / temperature).softmax(0).tolist()
    )
    return weights


def priors(
    teachers: Sequence[Classifier],
    pool: Pool,
    seed: int,
    given: Mapping[str, float] | None = None,
) -> list[float]:
    """Return the prior of each teacher, in percent.

    Args:
        teachers: frozen.
        pool: real images.
        seed: of the run.
        given: priors by architecture; None measures the share of random crops of a thousand
            training images that a teacher recognises.

    Raises:
        UsageError: if a teacher has no prior among those given.
    """
    if given is not None:
        if missing := [one.name for one in teachers if one.name not in given]:
            raise UsageError(f"prior has no number for {', '.join(missing)}; it has {dict(given)}")
        return [float(given[one.name]) for one in teachers]
    rng = random_generator(seed, "prior")
    count, size = min(_CROPS, len(pool.labels)), pool.image_size
    chosen = torch.from_numpy(rng.permutation(len(pool.labels))[:count])
    views = random_views(rng, count, size, flip=False)
    device = teachers[0].mean.device

    @torch.no_grad()
    def right(part: torch.Tensor) -> list[int]:
        crops = render(pool.pixels(chosen[part]), views[part], size).to(device)
        labels = pool.labels[chosen[part]].to(device)
        return [int((teacher(crops).argmax(1) == labels).sum()) for teacher in teachers]

    counted = Passes(size).of(right, torch.arange(count))
    return [100 * sum(numbers) / count for numbers in zip(*counted, strict=True)]


@dataclass(frozen=True)
class Voting:
    """How the committee's logits become one soft label.

    Attributes:
        weights: ``equal``: their mean, for every method alike; ``prior``: as CV-DD labels.
        temperature: τ of the weights.
        prior: p in percent by architecture; None measures it on crops of training images.
    """

    weights: Literal["equal", "prior"] = "equal"
    temperature: float = 10.0
    prior: Mapping[str, float] | None = None

    def of(self, teachers: Sequence[Classifier], pool: Pool, seed: int) -> list[float] | None:
        """Return the weight of each teacher; None for the mean."""
        if self.weights == "equal":
            return None
        return vote_weights(priors(teachers, pool, seed, self.prior), self.temperature)
