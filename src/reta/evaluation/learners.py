"""Models trained on hard labels, for evaluations: on real, distilled or remembered images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reta.data.augment import identity_views, padded_views, random_views, render
from reta.data.distilled import MicroBatch
from reta.memory import Passes, as_memory_limit
from reta.models import Classifier
from reta.runtime import random_generator
from reta.training import Protocol, fit


@dataclass(frozen=True)
class Examples:
    """Some labelled images, small enough to hold decoded.

    Attributes:
        pixels: ``(n, 3, s, s)`` uint8.
        labels: ``(n,)`` int64.
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: Examples) -> Examples:
        """Both, one after the other."""
        return Examples(
            torch.cat([self.pixels, other.pixels]), torch.cat([self.labels, other.labels])
        )

    def only(self, labels: torch.Tensor) -> Examples:
        """Return the images of some classes, in the order they are in."""
        chosen = torch.isin(self.labels, labels)
        return Examples(self.pixels[chosen], self.labels[chosen])


def learn(
    model: Classifier,
    examples: Examples,
    protocol: Protocol,
    *,
    seed: int,
    flip: bool,
    augment: bool = True,
    memory: Examples | None = None,
    seen: torch.Tensor | None = None,
    description: str = "student",
) -> None:
    """Train a model in place on hard labels.

    The augmentations are those of the teachers: small images are moved and mirrored, larger ones
    cropped and mirrored.

    Args:
        model: on its device.
        examples: shown once an epoch.
        protocol: rates and epochs.
        seed: of order, augmentation and dropout.
        flip: whether mirroring keeps the meaning of the images.
        augment: whether images are augmented at all.
        memory: images of which as many are added to each batch, drawn at random (replay).
        seen: ``(classes,)`` bool, the classes that exist so far; the logits of others are left
            out of the loss.
        description: for the progress bar.
    """
    device, count = model.mean.device, len(examples)
    batch_size = min(64, max(8, count // 10))

    def batches(epoch: int) -> Iterator[list[MicroBatch]]:
        rng = random_generator(seed, "learn", model.name, epoch)
        order = torch.from_numpy(rng.permutation(count))
        for part in order.split(batch_size):
            pixels, labels = examples.pixels[part], examples.labels[part]
            if memory is not None and len(memory):
                drawn = torch.from_numpy(rng.integers(0, len(memory), len(part)))
                pixels = torch.cat([pixels, memory.pixels[drawn]])
                labels = torch.cat([labels, memory.labels[drawn]])
            if len(labels) == 1 and count > 1:
                continue  # one image alone has no batch statistics
            size = pixels.shape[-1]
            if not augment:
                views = identity_views(len(pixels), size, size)
            elif size <= 64:
                views = padded_views(rng, len(pixels), size, pad=max(1, size // 8), flip=flip)
            else:
                views = random_views(rng, len(pixels), size, scale=(0.25, 1.0), flip=flip)
            shown = render(pixels.to(device).float() / 255, views, size)
            yield [(shown, labels.to(device))]

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(_masked(logits, seen), labels)

    unfit = (
        f"a batch of {batch_size} images does not fit into memory while {description} is trained, "
        "and a smaller one would be another training; choose a smaller network, or use a device "
        "with more memory"
    )
    with as_memory_limit(unfit):
        fit(model, batches, loss, protocol, lambda epoch: None, description, seed=seed)


def _masked(logits: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    return logits if seen is None else logits.masked_fill(~seen.to(logits.device), -torch.inf)


@torch.no_grad()
def recognised(
    model: Classifier, examples: Examples, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Return which images ``(n,)`` bool are recognised, among the classes seen so far."""
    model.eval()
    pixels, device = examples.pixels, model.mean.device

    def answers(part: torch.Tensor) -> torch.Tensor:
        return _masked(model(part.to(device).float() / 255), seen).argmax(1).cpu()

    return torch.cat(Passes(pixels.shape[-1]).of(answers, pixels)) == examples.labels
