"""How many bytes a run is about to write, so that a disk that is too small is said beforehand."""

from __future__ import annotations

import torch

from reta.data.formats import LabelFormat, bytes_per_row

_HEADER = 1000  # of a file, at most
_VIEW = 40  # bytes that say how a view was cut and mixed
_COLUMNS, _ROWS = 9, 10  # of a class's history sheet


def block_bytes(classes: int, ipc: int, size: int) -> int:
    """Return the most bytes that recovering a block of classes writes.

    Images that do not compress, their history, and the kept state: pixels and Adam's two moments.
    """
    image = 3 * size * size
    sheet = min(ipc, _ROWS) * _COLUMNS * image + _HEADER
    return classes * (ipc * (image + _HEADER) + sheet + 3 * 4 * ipc * image)


def shard_bytes(epochs: int, images: int, form: LabelFormat | None, classes: int) -> int:
    """Return the most bytes of a shard of labels of some epochs; without logits if form is None."""
    row = 0 if form is None else bytes_per_row(form, classes)
    return epochs * images * (row + _VIEW) + 10 * _HEADER


def training_bytes(model: torch.nn.Module, averaged: bool = False) -> int:
    """Return the most bytes of training a network: its weights, and the state kept on the way.

    Args:
        model: the network.
        averaged: whether a running mean of the weights is kept as well.
    """
    tensors: list[torch.Tensor] = list(model.state_dict().values())
    weights = sum(value.numel() * value.element_size() for value in tensors)
    state = 3 + averaged  # the weights and AdamW's two moments
    return weights * (1 + state) + len(tensors) * _HEADER


def pool_bytes(images: int, features: int, width: int) -> int:
    """Return the bytes of a shard of the pool: features of so many bytes each, and confidences."""
    return images * (features * width + 4) + _HEADER
