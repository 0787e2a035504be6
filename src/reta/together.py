"""Students of one set trained together: the same batches, so one pass can serve them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reta.data.distilled import DistilledSet
from reta.data.images import ImageSet
from reta.errors import UsageError
from reta.models import Classifier, StackedClassifier
from reta.runtime import mixed_precision
from reta.training import Loss, Progress, Protocol, fit, student_loss, watch


def train_together(
    students: Sequence[Classifier], data: DistilledSet, test: ImageSet, protocol: Protocol
) -> list[Progress]:
    """Train students of one architecture, each as `train_student` would, up to rounding.

    For a GPU, where launches bound one student. On a CPU it is slower than one after the other:
    networks side by side are grouped convolutions, which its kernels are not made for.

    Args:
        students: that differ in their weights; on their device, trained in place.
        data: what all of them learn from.
        test: to measure on.
        protocol: rates and epochs of all of them.

    Raises:
        UsageError: if they have dropout, which one after another would draw otherwise.
        DivergedError: if the loss of any becomes NaN or infinite.
    """
    if any(isinstance(part, torch.nn.Dropout) and part.p for part in students[0].modules()):
        raise UsageError(f"{students[0].name} has dropout: train its students one by one")
    stacked = StackedClassifier(students)
    device = stacked.mean.device
    watched = [watch(student, test, protocol) for student in students]

    def after_epoch(epoch: int) -> None:
        if protocol.checked(epoch):
            stacked.write_to(students)
        for _, measure in watched:
            measure(epoch)

    both = protocol.labels == "soft" and protocol.hard_weight > 0
    kind = "both" if both else protocol.labels
    fit(
        stacked,
        lambda epoch: data.batches(epoch, device, kind),
        summed(student_loss(protocol)),
        protocol,
        after_epoch,
        f"{len(students)} students {stacked.name}",
        short=mixed_precision(device)[0],
    )
    return [progress for progress, _ in watched]


def summed(loss: Loss) -> Loss:
    """Return a loss of logits ``(n, K, classes)``: that of each network, added up."""

    def total(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(own, targets) for own in logits.unbind(1)]).sum()

    return total
