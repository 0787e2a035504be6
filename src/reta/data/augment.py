"""Augmentations that are recorded, then rendered: every random choice is a number one can store.

A view is a crop box, a flip and a circular shift; rendering it is two matrix products (rows, then
columns), which equals torchvision's antialiased ``resized_crop`` but has static shapes and a
deterministic backward pass on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Views:
    """How each of n views is cut from its image.

    Attributes:
        boxes: ``(n, 4)`` int64 top, left, height, width of the crop in pixels; parts of a box
            outside the image are black.
        flips: ``(n,)`` bool, mirrored left to right after the crop.
        shifts: ``(n, 2)`` int64 circular shift down and right, in output pixels, after the flip.
    """

    boxes: torch.Tensor
    flips: torch.Tensor
    shifts: torch.Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: slice | torch.Tensor) -> Views:
        """The views at some positions."""
        return Views(*(getattr(self, part.name)[index] for part in fields(self)))


def identity_views(count: int, height: int, width: int) -> Views:
    """Return views that show whole images."""
    boxes = torch.tensor([[0, 0, height, width]]).repeat(count, 1)
    return Views(
        boxes, torch.zeros(count, dtype=torch.bool), torch.zeros(count, 2, dtype=torch.int64)
    )


def random_views(
    rng: np.random.Generator,
    count: int,
    size: int,
    *,
    scale: tuple[float | Sequence[float], float] = (0.08, 1.0),
    ratio: tuple[float, float] = RATIO,
    flip: bool = True,
    shift: int = 0,
    out_size: int | None = None,
) -> Views:
    """Draw random resized crops of square images, mirrored half the time, circularly shifted.

    The distribution is torchvision's ``RandomResizedCrop`` with ten tries, then the whole image;
    the shift is FADRM's roll by 0 … ``shift`` in both directions.

    Args:
        rng: generator of this draw.
        count: number of views.
        size: side of the images, in pixels.
        scale: range of the crop's share of the area; the least one may differ from view to view.
        ratio: range of the crop's width over its height.
        flip: whether mirroring keeps the meaning of these images.
        shift: largest circular shift, in output pixels.
        out_size: side of the views; that of the images by default.
    """
    tries = 10
    least = np.broadcast_to(scale[0], count)[:, None]
    areas = rng.uniform(least, scale[1], (count, tries)) * size * size
    low, high = np.log(ratio)
    ratios = np.exp(rng.uniform(low, high, (count, tries)))
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (widths >= 1) & (widths <= size) & (heights >= 1) & (heights <= size)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    found = fits.any(axis=1)
    height = np.where(found, heights[rows, first], size)
    width = np.where(found, widths[rows, first], size)
    top = np.floor(rng.random(count) * (size - height + 1)).astype(np.int64)
    left = np.floor(rng.random(count) * (size - width + 1)).astype(np.int64)
    flips = (rng.random(count) < 0.5) & flip
    shifts = rng.integers(0, min(shift, (out_size or size) - 1) + 1, (count, 2))
    boxes = np.stack([top, left, height, width], axis=1)
    return Views(torch.from_numpy(boxes), torch.from_numpy(flips), torch.from_numpy(shifts))


def padded_views(rng: np.random.Generator, count: int, size: int, *, pad: int, flip: bool) -> Views:
    """Draw full-size crops moved by up to ``pad`` pixels over black, mirrored half the time.

    The standard augmentation for training on small images (padding 4 at 32 px).
    """
    corners = rng.integers(-pad, pad + 1, (count, 2))
    boxes = np.concatenate([corners, np.full((count, 2), size)], axis=1)
    flips = (rng.random(count) < 0.5) & flip
    none = torch.zeros(count, 2, dtype=torch.int64)
    return Views(torch.from_numpy(boxes), torch.from_numpy(flips), none)


def sampling_matrix(
    start: torch.Tensor,
    length: torch.Tensor,
    in_size: int,
    out_size: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the weights that resample a stretch of pixels to ``out_size``, antialiased bilinear.

    Args:
        start: ``(v,)`` first pixel of each stretch; may lie outside the image.
        length: ``(v,)`` pixels in each stretch.
        in_size: pixels in the image.
        out_size: pixels wanted.
        dtype: of the weights.

    Returns:
        ``(v, out_size, in_size)``; rows sum to 1 where the stretch lies inside the image.
    """
    scale = (length.to(dtype) / out_size)[:, None, None]
    width = scale.clamp(min=1.0)  # a shrinking filter widens, so that every pixel counts
    centres = (torch.arange(out_size)[None, :, None] + 0.5) * scale
    # Pixels outside the image are black, yet they count: the weights sum to 1 over the stretch.
    before = max(0, -int(start.min()))
    after = max(0, int((start + length).max()) - in_size)
    offsets = torch.arange(-before, in_size + after)[None, None, :] - start[:, None, None]
    inside = (offsets >= 0) & (offsets < length[:, None, None])
    weights = (1 - (offsets + 0.5 - centres).abs() / width).clamp(min=0) * inside
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights[..., before : before + in_size]


def _rolled(matrix: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    size = matrix.shape[1]
    source = (torch.arange(size)[None, :] - shifts[:, None]) % size  # (v, out)
    return matrix.gather(1, source[:, :, None].expand_as(matrix))


def _sent(weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return weights beside images; a GPU goes on meanwhile, which from other memory it cannot."""
    if images.is_cuda:
        weights = weights.to(images.dtype).pin_memory()
    return weights.to(images, non_blocking=True)


def render(images: torch.Tensor, views: Views, size: int) -> torch.Tensor:
    """Return the views of images, differentiably.

    Args:
        images: ``(v, ..., h, w)``; the first axis matches the views, so one view may be shared by
            a whole group of images.
        views: v views.
        size: side of the result.

    Returns:
        ``(v, ..., size, size)``.
    """
    count, height, width = images.shape[0], images.shape[-2], images.shape[-1]
    top, left, box_height, box_width = views.boxes.unbind(1)
    dtype = torch.promote_types(images.dtype, torch.float32)  # float64 only for float64 images
    rows = _rolled(sampling_matrix(top, box_height, height, size, dtype), views.shifts[:, 0])
    columns = sampling_matrix(left, box_width, width, size, dtype)
    columns = torch.where(views.flips[:, None, None], columns.flip(1), columns)
    columns = _rolled(columns, views.shifts[:, 1])
    rows, columns = _sent(rows, images), _sent(columns, images)
    wide = images.reshape(count, -1, width) @ columns.transpose(1, 2)  # (v, …·h, size)
    tall = wide.view(count, -1, height, size).transpose(2, 3).reshape(count, -1, height)
    square = tall @ rows.transpose(1, 2)  # (v, …·size, size): columns first, then rows
    square = square.view(count, -1, size, size).transpose(2, 3)
    return square.reshape(*images.shape[:-2], size, size)


@dataclass(frozen=True)
class Mix:
    """CutMix: a box of each image is replaced by the same box of its partner.

    Attributes:
        partners: ``(n,)`` int64 positions of the partners.
        boxes: ``(n, 4)`` int64 top, left, height, width of the box in pixels; may be empty.
    """

    partners: torch.Tensor
    boxes: torch.Tensor


def random_mix(rng: np.random.Generator, count: int, size: int, batch_size: int) -> Mix:
    """Draw one CutMix box and one permutation for each batch of consecutive images.

    The share kept is uniform, as with CutMix's Beta(1, 1).
    """
    partners, boxes = [], []
    for begin in range(0, count, batch_size):
        n = min(batch_size, count - begin)
        side = int(size * np.sqrt(1 - rng.random()))
        centre = rng.integers(0, size, 2)
        low = np.clip(centre - side // 2, 0, size)
        high = np.clip(centre + side // 2, 0, size)
        partners.append(begin + rng.permutation(n))
        boxes.append(np.tile(np.concatenate([low, high - low]), (n, 1)))
    return Mix(torch.from_numpy(np.concatenate(partners)), torch.from_numpy(np.concatenate(boxes)))


def cutmix(images: torch.Tensor, others: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return images ``(n, c, s, s)`` with a box ``(n, 4)`` of each taken from ``others``."""
    size = images.shape[-1]
    top, left, height, width = boxes.to(images.device)[:, :, None].unbind(1)  # each (n, 1)
    line = torch.arange(size, device=images.device)[None]
    in_rows = (line >= top) & (line < top + height)
    in_columns = (line >= left) & (line < left + width)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(inside, others, images)
