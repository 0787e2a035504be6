"""DD-Ranking's scores (Li et al., arXiv 2505.13300): a set's worth beyond labels and augmentation.

The formulas are of fractions. The public code (0.2.0) feeds them percent, so its scores leave
[0, 1], chooses rates and epochs on test images, and takes seeds from the clock; here rates are
chosen on held-out training images, seeds are counted, and every accuracy is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from reta.data.distilled import DistilledSet
from reta.errors import UsageError
from reta.evaluation.learners import Examples, learn, recognised
from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Subject
from reta.models import Classifier, build, file_stem
from reta.progress import track
from reta.runtime import random_generator
from reta.synthesis.relabel import relabel
from reta.training import Protocol, accuracy, train_student

TRAININGS = (
    "real, hard labels",
    "distilled, hard labels",
    "distilled, own labels",
    "random, own labels",
    "distilled, hard labels, no augmentation",
    "random, hard labels",
    "random, hard labels, no augmentation",
)


def squashed(score: float) -> float:
    """Return (e^x − e⁻¹) / (e − e⁻¹), which maps [−1, 1] to [0, 1].

    Raises:
        ValueError: if the score is no difference of fractions.
    """
    if not -1 <= score <= 1:
        raise ValueError(f"{score} is outside [-1, 1]: accuracies must be fractions, not percent")
    return (math.exp(score) - math.exp(-1)) / (math.e - math.exp(-1))


def hard_label_recovery(real: float, synthetic: float) -> float:
    """HLR: accuracy of real data less that of the set, both with hard labels; lower is better."""
    return real - synthetic


def improvement_over_random(synthetic: float, random: float) -> float:
    """IOR: accuracy of the set less that of as many random images, in the set's own evaluation."""
    return synthetic - random


def label_robust_score(recovery: float, improvement: float, weight: float = 0.5) -> float:
    """LRS of w·IOR − (1 − w)·HLR: 0.269 for no gain and no loss, 0.545 at best for w = 0.5."""
    return squashed(weight * improvement - (1 - weight) * recovery)


def augmentation_robust_score(
    augmented: float,
    augmented_random: float,
    plain: float,
    plain_random: float,
    weight: float = 0.5,
) -> float:
    """ARS of γ·(gain over random, augmented) + (1 − γ)·(gain over random, not augmented)."""
    gain = weight * (augmented - augmented_random) + (1 - weight) * (plain - plain_random)
    return squashed(gain)


@dataclass(frozen=True)
class Ranking:
    """HLR, IOR, LRS and ARS of DD-Ranking.

    Students are trained on real, distilled and random images with hard labels, and on distilled
    and random images with the committee's labels of the same views (the set's own evaluation). The
    learning rate of each kind of training is chosen from ``rates`` with one student, then
    ``rounds`` students with other seeds are trained at it and measured on test images after the
    last epoch. Augmentation, for ARS, is the teachers' (hard labels in all four trainings).

    Attributes:
        rounds: students per kind of training, and random sets.
        rates: learning rates to choose from; a single one is not tried first.
        select: ``held-out`` chooses on a tenth of the real training images, which real and random
            trainings do not see; ``test`` chooses on test images, as the leaderboard does.
        epochs: passes over distilled and random images; by default as many as there are epochs of
            labels.
        real_epochs: passes over the real images.
        weight: w of LRS and γ of ARS.
    """

    rounds: int = 5
    rates: tuple[float, ...] = (1e-3, 5e-3, 1e-2, 5e-2, 1e-1)
    select: Literal["held-out", "test"] = "held-out"
    epochs: int | None = None
    real_epochs: int = 20
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.rates or min(self.rates) <= 0:
            raise UsageError("ranking: use at least one round and positive rates")
        if not 0 <= self.weight <= 1:
            raise UsageError(f"ranking.weight is {self.weight}; choose it in [0, 1]")

    def measure(self, subject: Subject) -> Result:
        """Return the four scores and every accuracy they are made of."""
        bench = _Bench(subject, self)
        raw = {kind: bench.accuracies(kind) for kind in track(TRAININGS, "ranking", len(TRAININGS))}
        real, hard, own, chance = (raw[kind]["test"] for kind in TRAININGS[:4])
        plain, hard_random, plain_random = (raw[kind]["test"] for kind in TRAININGS[4:])
        rounds = range(self.rounds)
        recovery = [hard_label_recovery(real[i], hard[i]) for i in rounds]
        improvement = [improvement_over_random(own[i], chance[i]) for i in rounds]
        label = [label_robust_score(recovery[i], improvement[i], self.weight) for i in rounds]
        augmentation = [
            augmentation_robust_score(
                hard[i], hard_random[i], plain[i], plain_random[i], self.weight
            )
            for i in rounds
        ]
        figures = {
            "lrs": Figure("LRS", label, "number"),
            "ars": Figure("ARS", augmentation, "number"),
            "hlr": Figure("HLR", recovery, better="lower"),
            "ior": Figure("IOR", improvement),
        }
        return Result(figures, {"trainings": raw}, self._notes())

    def _notes(self) -> list[str]:
        if len(self.rates) == 1:
            return [f"All trainings used the learning rate {self.rates[0]:g}; none was chosen."]
        if self.select == "test":
            return ["Learning rates were chosen on the test images, as the leaderboard does."]
        return [
            "Learning rates were chosen on a tenth of the real training images; the distilled set "
            "was made with those too.",
        ]


class _Bench:
    """Trains the students of one ranking, keeping every accuracy as a unit."""

    def __init__(self, subject: Subject, ranking: Ranking) -> None:
        self.subject, self.ranking = subject, ranking
        train = subject.source.train
        order = torch.from_numpy(random_generator(0, "ranking").permutation(len(train)))
        held = max(1, len(train) // 10)
        self._held = order[:held].sort().values
        self._kept = order[held:].sort().values
        self.epochs = ranking.epochs or subject.data.epochs

    def accuracies(self, kind: str) -> dict[str, Any]:
        """Return the chosen rate of a kind of training and the accuracy of every round."""
        rates = self.ranking.rates if len(self.ranking.rates) > 1 else ()  # nothing to choose
        tried = {rate: self._trained(kind, rate, 0, choosing=True) for rate in rates}
        rate = max(tried, key=lambda one: tried[one], default=self.ranking.rates[0])
        rounds = range(1, self.ranking.rounds + 1)
        return {
            "rate": rate,
            "tried": {str(one): value for one, value in tried.items()},
            "seeds": list(rounds),
            "test": [self._trained(kind, rate, seed, choosing=False) for seed in rounds],
        }

    def _trained(self, kind: str, rate: float, seed: int, *, choosing: bool) -> float:
        subject, ranking = self.subject, self.ranking
        on = "held-out" if choosing and ranking.select == "held-out" else "test"
        inputs = {
            "kind": kind,
            "rate": rate,
            "seed": seed,
            "on": on,
            "student": subject.student,
            "epochs": self.epochs,
            "real_epochs": ranking.real_epochs,
            "teachers": subject.manifest["teachers"],
            "ipc": subject.ipc,
        }
        word = f"{TRAININGS.index(kind)}-{file_stem(subject.student)}-{rate:g}-{seed}-{on}"
        facts = subject.once(
            f"ranking-{word}",
            inputs,
            lambda: {"accuracy": self._accuracy(kind, rate, seed, on)},
            shared=not kind.startswith("distilled"),
        )
        return float(facts["accuracy"])

    def _accuracy(self, kind: str, rate: float, seed: int, on: str) -> float:
        """Train one student and return its accuracy after the last epoch."""
        subject, source = self.subject, self.subject.source
        average, spread = source.mean_std
        model = build(
            subject.student,
            len(subject.classes),
            source.image_size,
            mean=average,
            std=spread,
            seed=seed,
        ).to(subject.device)
        epochs = self.ranking.real_epochs if kind.startswith("real") else self.epochs
        protocol = Protocol(epochs, rate, stretch=subject.stretch)
        if "own labels" in kind:
            train_student(model, self._labelled(kind, seed), source.test, protocol, seed=seed)
        else:
            learn(
                model,
                self._examples(kind, seed),
                protocol,
                seed=seed,
                flip=source.flip,
                augment="no augmentation" not in kind,
                description=kind,
            )
        return self._measured(model, on)

    def _examples(self, kind: str, seed: int) -> Examples:
        subject, train = self.subject, self.subject.source.train
        if kind.startswith("real"):
            return Examples(train.pixels(self._kept).cpu(), train.labels[self._kept])
        if kind.startswith("distilled"):
            return Examples(subject.data.images, subject.data.labels)
        return self._random(seed)

    def _random(self, seed: int) -> Examples:
        """Return as many random real images as there are distilled ones, none of them held out."""
        subject, train = self.subject, self.subject.source.train
        chosen = []
        for label in range(len(subject.classes)):
            own = self._kept[train.labels[self._kept] == label]
            rng = random_generator(seed, "ranking", "random", label)
            drawn = torch.from_numpy(rng.permutation(len(own)))
            chosen.append(own[drawn[torch.arange(subject.ipc) % len(own)]])
        indices = torch.cat(chosen)
        return Examples(train.pixels(indices).cpu(), train.labels[indices])

    def _labelled(self, kind: str, seed: int) -> DistilledSet:
        """Return distilled or random images with the committee's labels of their views."""
        subject = self.subject
        if kind.startswith("distilled"):
            return subject.data
        images = self._random(seed)
        shard = relabel(
            subject.committee,
            images.pixels,
            range(subject.data.epochs),
            seed=seed,
            flip=subject.source.flip,
        )
        return DistilledSet(images.pixels, images.labels, subject.classes, [shard], None)

    def _measured(self, model: Classifier, on: str) -> float:
        source = self.subject.source
        if on == "test":
            return accuracy(model, source.test)[0]
        held = Examples(source.train.pixels(self._held).cpu(), source.train.labels[self._held])
        return float(recognised(model, held).float().mean())
