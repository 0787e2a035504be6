"""Soft labels: the committee's mean logits on augmented views, under batch statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reta.checkpoint import Checkpoint, State
from reta.committee import committee_logits
from reta.data.labels import BATCH, LabelShard, draw_epoch, micro_batches
from reta.interruption import check
from reta.models import Classifier
from reta.progress import track
from reta.runtime import images_per_pass


def relabel(
    committee: Sequence[Classifier],
    images: torch.Tensor,
    epochs: range,
    *,
    seed: int,
    crop: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    weights: Sequence[float] | None = None,
    online: bool = False,
    checkpoint: Checkpoint | None = None,
) -> LabelShard:
    """Return the soft labels of some epochs of views.

    Args:
        committee: frozen teachers.
        images: ``(n, 3, s, s)`` uint8, all synthetic images.
        epochs: which epochs.
        seed: of the run.
        crop: range of the share of the area that a view shows.
        flip: whether mirroring keeps the meaning of the images.
        weights: of the teachers' logits; all alike by default.
        online: draw the views only; the committee will be asked while students train.
        checkpoint: keeps what was labelled, so that the work can be interrupted.
    """
    if online:
        count, size = len(images), images.shape[-1]
        return LabelShard([draw_epoch(seed, e, count, size, crop, flip) for e in epochs], None)
    device = committee[0].mean.device
    images = images.to(device)
    count, size = len(images), images.shape[-1]
    batches = micro_batches(count)
    # A few batches at once, so that memory does not grow with the number of images.
    at_once = max(1, images_per_pass(size, device) // BATCH)
    checkpoint, shown = checkpoint or Checkpoint(), []
    kept = checkpoint.load()
    logits = [] if kept is None else [kept.tensors["logits"]]
    labelled = 0 if kept is None else len(logits[0])

    def state() -> State:
        return State({"logits": torch.cat(logits)} if logits else {})

    with checkpoint.keeping(state) as offer:
        for number, epoch in enumerate(track(epochs, "relabel: soft labels", len(epochs))):
            views = draw_epoch(seed, epoch, count, size, crop, flip)
            shown.append(views)
            for begin in range(0, len(batches), at_once):
                parts = [part for batch in batches[begin : begin + at_once] for part in batch]
                if number * count + parts[-1].stop <= labelled:
                    continue
                offer()
                check()
                pixels = views.render(images, torch.arange(parts[0].start, parts[-1].stop))
                sizes = [part.stop - part.start for part in parts]
                logits.append(committee_logits(committee, pixels, sizes, weights).cpu())
    return LabelShard(shown, torch.cat(logits).view(len(shown), count, -1))
