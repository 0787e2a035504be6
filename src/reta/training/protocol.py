"""How a model is trained: rates, losses, and what is kept of the course of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Protocol:
    """How a model is trained: AdamW with a cosine over all epochs.

    Attributes:
        epochs: passes over the data.
        learning_rate: at the start.
        weight_decay: of weights with more than one axis; biases and norms are spared.
        stretch: η, the cosine runs over η times the epochs; at 2 it ends at half the rate.
        temperature: T of the soft labels.
        labels: soft: the committee's; hard: the class of the image and of its CutMix partner, by
            cross-entropy.
        loss: of soft labels: the KL divergence at T, or the mean squared error of the logits.
        hard_weight: weight of the hard labels' cross-entropy beside the soft labels.
        checks: when test accuracy is measured: after each fifth of the epochs; or, as FADRM does,
            after every tenth epoch of the last fifth; and after the last epoch.
        smoothing: share of hard labels that is spread over all classes.
        ema: decay of the running mean of the weights that is kept in their place; 0: none.
    """

    epochs: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    stretch: float = 1.0
    temperature: float = 20.0
    labels: Literal["soft", "hard"] = "soft"
    loss: Literal["kl", "mse"] = "kl"
    hard_weight: float = 0.0
    checks: Literal["fifths", "end"] = "fifths"
    smoothing: float = 0.0
    ema: float = 0.0

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        phase = math.pi * epoch / (self.epochs * self.stretch)
        return self.learning_rate * 0.5 * (1 + math.cos(phase))

    def checked(self, done: int) -> bool:
        """Return whether test accuracy is measured when so many epochs are done."""
        if self.checks == "end":  # FADRM: epochs counted from 0 that end in 9
            return done == self.epochs or (done % 10 == 0 and done - 1 >= 0.8 * self.epochs)
        return done == self.epochs or done % -(-self.epochs // 5) == 0


@dataclass
class Progress:
    """Accuracy over the course of training.

    Attributes:
        curve: epochs finished and test accuracy in [0, 1] after them.
        held_out: epochs finished and accuracy on training images that were held out, if any.
        per_class: last accuracy of each class.
        confusion: last ``(true class, predicted class, images)``, where there are any.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    per_class: list[float | None] = field(default_factory=list)
    confusion: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def last(self) -> float:
        """Accuracy after the last epoch."""
        return self.curve[-1][1]

    @property
    def best(self) -> float:
        """Best accuracy seen: chosen on test images, so read it beside `last`."""
        return max(accuracy for _, accuracy in self.curve)


def soft_loss(temperature: float) -> Loss:
    """Return KL(student ‖ teacher) at a temperature, from logits, without the factor T²."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        student = F.log_softmax(logits / temperature, dim=1)
        teacher = F.log_softmax(targets / temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    return loss


def student_loss(protocol: Protocol) -> Loss:
    """Return what a student is trained with; soft and hard labels lie side by side if both are."""
    if protocol.labels == "hard":
        return F.cross_entropy
    soft = F.mse_loss if protocol.loss == "mse" else soft_loss(protocol.temperature)
    if not protocol.hard_weight:
        return soft

    def both(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        said, known = targets.chunk(2, dim=1)
        return soft(logits, said) + protocol.hard_weight * F.cross_entropy(logits, known)

    return both
