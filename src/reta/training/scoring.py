"""What a model recognises of real images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reta.data.images import ImageSet
from reta.memory import Passes
from reta.models import Classifier
from reta.runtime import images_per_pass
from reta.tracking import note
from reta.training.protocol import Progress, Protocol


@torch.no_grad()
def predict(
    model: Classifier, images: ImageSet, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the predicted classes ``(n,)`` of images, all by default."""
    model.eval()
    device = model.mean.device
    chosen = torch.arange(len(images)) if indices is None else indices
    passes, found = Passes(images.size), []

    def answers(pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(pixels.to(device).float() / 255)
        return logits.argmax(1).cpu()

    for batch in images.batches(chosen.split(images_per_pass(images.size))):
        found += passes.of(answers, batch)
    return torch.cat(found)


def accuracy(model: Classifier, images: ImageSet) -> tuple[float, list[float | None]]:
    """Return the share of images recognised, in all and by class (None if it has no images)."""
    return shares(predict(model, images), images)


def shares(predicted: torch.Tensor, images: ImageSet) -> tuple[float, list[float | None]]:
    """Return the share of right predictions ``(n,)``, in all and by class."""
    right = predicted == images.labels
    members = [images.of_class(label) for label in range(len(images.classes))]
    per_class = [float(right[own].float().mean()) if len(own) else None for own in members]
    return float(right.float().mean()), per_class


def confusion(predicted: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int]]:
    """Return how often each class ``(n,)`` was taken for each: true, predicted, images.

    Pairs that never occur are left out: a thousand classes have a million of them.
    """
    pairs, counts = torch.stack([labels.cpu(), predicted.cpu()], 1).unique(
        dim=0, return_counts=True
    )
    return [
        (true, taken, count)
        for (true, taken), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]


def watch(
    model: Classifier, test: ImageSet, protocol: Protocol
) -> tuple[Progress, Callable[[int], None]]:
    """Return a record of test accuracy and what fills it when the protocol says so."""
    progress = Progress()

    def after_epoch(epoch: int) -> None:
        if protocol.checked(epoch):
            measure(progress, model, test, epoch)

    return progress, after_epoch


def measure(progress: Progress, model: Classifier, test: ImageSet, epoch: int) -> None:
    """Add the test accuracy after so many epochs to a record."""
    predicted = predict(model, test)
    total, progress.per_class = shares(predicted, test)
    progress.confusion = confusion(predicted, test.labels)
    progress.curve.append((epoch, total))
    note(epoch, {"test_accuracy": total})
