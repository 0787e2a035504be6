"""Squeeze: a teacher learns real images with hard labels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from reta.checkpoint import Checkpoint
from reta.data.augment import padded_views, random_views, render
from reta.data.distilled import MicroBatch
from reta.data.images import ImageSet
from reta.errors import DataError
from reta.memory import as_memory_limit
from reta.models import Classifier
from reta.runtime import random_generator, teacher_precision
from reta.team import here
from reta.training.loop import fit
from reta.training.protocol import Progress, Protocol
from reta.training.scoring import measure, predict, watch


def train_teacher(
    model: Classifier,
    images: ImageSet,
    test: ImageSet,
    protocol: Protocol,
    *,
    flip: bool,
    seed: int,
    batch_size: int | None = None,
    target: float | None = None,
    share: float = 1.0,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train a teacher on real images with hard labels (squeeze).

    Small images are moved and mirrored, larger ones cropped and mirrored, as is usual. A batch is
    128 images, or a tenth of a set too small for that, since a teacher needs steps to learn. The
    images lie on the model's device, unless they are streamed. The processes of a `team` share
    every batch.

    Args:
        model: on its device.
        images: to learn from.
        test: to measure on; chooses nothing.
        protocol: rates and epochs.
        flip: whether mirroring keeps the meaning of the images.
        seed: of the run.
        batch_size: images per step.
        target: accuracy at which training stops, measured after each epoch on a tenth of each
            class of ``images`` that is then not learned from. Over-trained teachers distil worse.
        share: of the images, in (0, 1], that an epoch takes; each epoch draws others.
        checkpoint: keeps the state of the work, so that it can be interrupted.
    """
    team = here()
    learned, held = _held_out(images.labels, seed) if target is not None else (None, None)
    count = len(images) if learned is None else len(learned)
    batch_size = batch_size or min(128, max(16, count // 10))
    device, size = model.mean.device, images.size
    images, labels = images.to(device), images.labels.to(device)

    def batches(epoch: int) -> Iterator[list[MicroBatch]]:
        rng = random_generator(seed, "squeeze", model.name, epoch)
        order = torch.from_numpy(rng.permutation(count))
        if learned is not None:
            order = learned[order]
        if size <= 64:
            views = padded_views(rng, count, size, pad=max(1, size // 8), flip=flip)
        else:
            views = random_views(rng, count, size, scale=(0.25, 1.0), flip=flip)
        parts = torch.arange(count).split(batch_size)
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts = parts[:-1]  # one image alone has no batch statistics
        parts = parts[: math.ceil(share * len(parts))]
        parts = tuple(team.share(part) for part in parts)
        for part, pixels in zip(parts, images.batches(order[p] for p in parts), strict=True):
            own = labels[order[part].to(device)]
            yield [(render(pixels.to(device).float() / 255, views[part], size), own)]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if team.size == 1:
            return F.cross_entropy(logits, targets, label_smoothing=protocol.smoothing)
        summed = F.cross_entropy(
            logits, targets, label_smoothing=protocol.smoothing, reduction="sum"
        )
        return summed / team.total(summed.new_tensor(float(len(targets))))

    progress, after_epoch = watch(model, test, protocol)

    def enough(epoch: int) -> bool:
        after_epoch(epoch)
        if held is None or target is None:
            return False
        right = predict(model, images, held) == labels[held.to(device)].cpu()
        progress.held_out.append((epoch, float(right.float().mean())))
        if progress.held_out[-1][1] < target:
            return False
        if not progress.curve or progress.curve[-1][0] != epoch:
            measure(progress, model, test, epoch)
        return True

    unfit = (
        f"a batch of {batch_size} images of {size} px does not fit into memory while teacher "
        f"{model.name} is trained, and a smaller one would be another training; choose smaller "
        "--teachers, lower --image-size, or use a device with more memory"
    )
    with team.normalising(model), as_memory_limit(unfit):
        fit(
            model,
            batches,
            loss,
            protocol,
            enough,
            f"teacher {model.name}",
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            short=teacher_precision(device)[0],
        )
    return progress


def _held_out(labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices to learn from and those held out: a tenth of each class, at least one.

    A class of a single image is only learned.
    """
    rng = random_generator(seed, "squeeze", "held out")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten()
        few = max(1, len(own) // 10) if len(own) > 1 else 0
        held[own[torch.from_numpy(rng.permutation(len(own))[:few])]] = True
    if not held.any():
        raise DataError("too few images to hold some out: leave the target accuracy open")
    return (~held).nonzero().flatten(), held.nonzero().flatten()
