"""A student learns a distilled set with the labels of its views."""

from __future__ import annotations

from reta.checkpoint import Checkpoint
from reta.data.distilled import DistilledSet
from reta.data.images import ImageSet
from reta.memory import as_memory_limit
from reta.models import Classifier
from reta.runtime import mixed_precision
from reta.training.loop import fit
from reta.training.protocol import Progress, Protocol, student_loss
from reta.training.scoring import watch


def train_student(
    model: Classifier,
    data: DistilledSet,
    test: ImageSet,
    protocol: Protocol,
    *,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train a student on a distilled set, with the very batches its labels were made for.

    Hard and soft labels come with the same views in the same batches.
    """
    progress, after_epoch = watch(model, test, protocol)
    both = protocol.labels == "soft" and protocol.hard_weight > 0
    unfit = (
        f"a batch of labelled views does not fit into memory while student {model.name} is "
        "trained, and its size is that of the labels; choose a smaller --student, or use a device "
        "with more memory"
    )
    with as_memory_limit(unfit):
        fit(
            model,
            lambda epoch: data.batches(
                epoch, model.mean.device, "both" if both else protocol.labels
            ),
            student_loss(protocol),
            protocol,
            after_epoch,
            f"student {model.name}, seed {seed}",
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            short=mixed_precision(model.mean.device)[0],
        )
    return progress
