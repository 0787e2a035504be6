"""Real images one asks for by index, held decoded in memory or decoded from their files on demand.

Training, the pool and retrieval know `ImageSet` alone, so every one of them works on a set that
does not fit in memory.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from reta.data.intake import Pixels, square
from reta.data.listing import Listing
from reta.errors import DataError

Triple = tuple[float, float, float]
T = TypeVar("T")

PER_READ = 64  # images a worker decodes before it hands them over
_FEW = 128  # so few images are decoded here: starting workers would take longer
_SAMPLE = 4096  # images that stand for a streamed set where looking at all would take a pass


class ImageSet(ABC):
    """Labelled square images of one size.

    Attributes:
        labels: (n,) int64, indices into ``classes``.
        classes: class names.
        size: side of every image in pixels.
    """

    labels: torch.Tensor
    classes: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, label: int) -> torch.Tensor:
        """Return the indices (m,) int64 of the images of one class."""
        return (self.labels == label).nonzero().flatten()

    @abstractmethod
    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images (..., 3, s, s) uint8 for indices of any shape."""

    @abstractmethod
    def batches(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the images (m, 3, s, s) uint8 of each part (m,) in turn, decoding ahead."""

    def to(self, device: torch.device) -> ImageSet:
        """Return the set with its pixels on a device, if they are held at all."""
        return self

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a sha256 that tells this set from another; what it covers is up to the kind."""

    @cached_property
    def mean_std(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation per channel of the images in [0, 1], for normalisation.

        Sums of integers, hence the same on every machine; a constant channel gets 1/255. Of a
        streamed set, those of a few thousand images spread evenly over it.
        """
        total = torch.zeros(3, dtype=torch.int64)
        squares = torch.zeros(3, dtype=torch.int64)
        count = 0
        for images in self.batches(self._sample().split(1024)):  # bounds the wider integers
            values = images.cpu().long()
            total += values.sum((0, 2, 3))
            squares += values.square().sum((0, 2, 3))
            count += values.numel() // 3
        mean = total.double() / count
        std = (squares.double() / count - mean.square()).clamp_min(1).sqrt()
        return _triple(mean / 255), _triple(std / 255)

    def _sample(self) -> torch.Tensor:
        """Return the indices of the images that stand for all."""
        return torch.arange(len(self))

    def _check_labels(self) -> None:
        shape = tuple(self.labels.shape)
        if self.labels.dtype != torch.int64 or len(shape) != 1:
            raise DataError(f"labels must be int64 (n,), not {self.labels.dtype} {shape}")
        if not ((self.labels >= 0) & (self.labels < len(self.classes))).all():
            raise DataError(f"labels must lie between 0 and {len(self.classes) - 1}")
        if len(set(self.classes)) < len(self.classes):
            raise DataError("two classes have the same name; rename one")
        for name in self.classes:
            if name in ("", ".", "..") or set(name) & set("/\\\0"):
                raise DataError(f"class name {name!r} cannot name a folder; rename the class")


class DecodedImages(ImageSet):
    """Images held decoded, in memory or on a GPU.

    Attributes:
        images: (n, 3, s, s) uint8, RGB.

    Raises:
        DataError: if shapes, types or labels do not fit together, or a class name cannot be the
            name of a folder.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]
    ) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        shape = tuple(images.shape)
        if images.dtype != torch.uint8 or shape[1:] != (3, *shape[2:3] * 2):
            raise DataError(f"images must be uint8 (n, 3, s, s), not {images.dtype} {shape}")
        if len(labels) != len(images):
            raise DataError(
                f"labels must be int64 ({len(images)},), not {labels.dtype} {tuple(labels.shape)}"
            )
        self._check_labels()
        self.size = shape[-1]

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images (..., 3, s, s) uint8 for indices of any shape."""
        return self.images[indices.to(self.images.device)]

    def batches(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the images (m, 3, s, s) uint8 of each part (m,) in turn."""
        return map(self.pixels, parts)

    def to(self, device: torch.device) -> DecodedImages:
        """Return the set with its pixels on a device."""
        return DecodedImages(self.images.to(device), self.labels, self.classes)

    def fingerprint(self) -> str:
        """Return the sha256 of every pixel, label and class name."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.cpu().numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()


class StreamedImages(ImageSet):
    """Images that stay in their files and are decoded when asked for, by worker processes.

    Processes, not threads: a small image spends most of its time in Python, which threads would
    take in turns (measured in ``benchmarks/streaming.py``). What comes back, and in which order,
    does not depend on the number of workers. Memory holds the labels, the names of the files and
    the batches in flight.
    """

    def __init__(self, listing: Listing, size: int, workers: int | None = None) -> None:
        self.listing, self.size = listing, size
        self.labels, self.classes = torch.from_numpy(listing.labels), listing.classes
        self.workers = workers
        self._check_labels()

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images (..., 3, s, s) uint8 for indices of any shape.

        Raises:
            DataError: if one of them cannot be decoded.
        """
        found = list(self.batches(indices.flatten().split(PER_READ)))
        empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.cat(found or [empty]).view(*indices.shape, 3, self.size, self.size)

    def batches(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the images (m, 3, s, s) uint8 of each part (m,) in turn, decoding ahead.

        Raises:
            DataError: if one of them cannot be decoded.
        """
        wanted = [[read.tolist() for read in part.cpu().split(PER_READ)] for part in parts]
        reads = [read for part in wanted for read in part]
        decoded = read_ahead(Decoding(self.listing, self.size), reads, self.workers)
        for part in wanted:
            pieces = [_pixels(next(decoded)) for _ in part]
            yield torch.from_numpy(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))

    def fingerprint(self) -> str:
        """Return the sha256 of every name, label and length in bytes, and of some pixels.

        Reading every file would take as long as a pass over the set; an image exchanged for
        another of the same name and length is noticed only if it is one of 4,096 spread evenly.
        """
        head = (len(self), self.size, self.classes)
        digest = hashlib.sha256(repr(head).encode())
        digest.update(self.listing.labels.data)
        for place in range(len(self)):
            digest.update(self.listing.key(place).encode() + b"\0")
        digest.update(self.listing.lengths().data)
        for images in self.batches(self._sample().split(PER_READ)):
            digest.update(images.numpy().data)
        return digest.hexdigest()

    def _sample(self) -> torch.Tensor:
        """Return the indices of at most 4,096 images, spread evenly."""
        count = min(len(self), _SAMPLE)
        return torch.arange(count) * len(self) // max(count, 1)


class Decoding:
    """What a worker does to a read: decode its images to squares, or say which one it could not."""

    def __init__(self, listing: Listing, size: int) -> None:
        self.listing, self.size = listing, size

    def __call__(self, places: Sequence[int]) -> Pixels | str:
        """Return the images (m, 3, s, s) at some places, or the reason why there are none."""
        images = np.empty((len(places), 3, self.size, self.size), dtype=np.uint8)
        try:
            for image, place in zip(images, places, strict=True):
                pixels = square(self.listing.read(place), self.size)
                image[:] = pixels.transpose(2, 0, 1)  # (s, s, 3) -> (3, s, s)
        except DataError as error:  # as text: a traceback through two processes helps nobody
            return str(error)
        return images


class _Reads(Dataset[T]):
    """The work of a worker in the form that a DataLoader knows."""

    def __init__(self, work: Callable[[list[int]], T]) -> None:
        self.work = work

    def __getitem__(self, places: list[int]) -> T:
        return self.work(places)


def read_ahead(
    work: Callable[[list[int]], T], reads: Sequence[list[int]], workers: int | None
) -> Iterator[T]:
    """Yield what ``work`` returns for each read, in order, computed by worker processes.

    At most two reads per worker are ahead of what was yielded, so memory is bounded. Few images
    are read in this process, because starting workers would take longer.

    Args:
        work: picklable.
        reads: places of images, some at a time.
        workers: how many processes; as many as there are processors by default.
    """
    workers = available_cores() if workers is None else workers
    few = sum(map(len, reads)) <= _FEW
    loader = DataLoader(
        _Reads(work),
        sampler=reads,
        batch_size=None,
        num_workers=0 if few else min(workers, len(reads)),
        collate_fn=_as_it_is,  # arrays travel through a pipe, so a small /dev/shm is no limit
    )
    yield from loader


def _as_it_is(answer: Any) -> Any:
    return answer


def _pixels(answer: Pixels | str) -> Pixels:
    if isinstance(answer, str):
        raise DataError(
            f"{answer}\n`reta scan` finds every such image; --bad-images skip leaves them out"
        )
    return answer


def available_cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _triple(values: torch.Tensor) -> Triple:
    first, second, third = values.tolist()
    return first, second, third
