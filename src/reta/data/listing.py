"""Which images a set has, before any is decoded."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reta.data.intake import Pixels, read_image
from reta.errors import DataError
from reta.runtime import random_generator

Integers = npt.NDArray[np.int64]


class Store(Protocol):
    """Where images come from; passed to worker processes, so plain data and methods."""

    def key(self, row: int) -> str:
        """Return a name of the image that does not depend on where the set lies."""
        ...

    def name(self, row: int) -> str:
        """Return what to call the image in messages: its path, or its file and row."""
        ...

    def read(self, row: int, notes: list[str] | None = None) -> Pixels:
        """Return the pixels (h, w, 3) of an image, or raise `DataError`; see `read_image`."""
        ...

    def content(self, row: int) -> bytes:
        """Return the bytes of an image as they are stored."""
        ...

    def lengths(self, rows: Integers) -> Integers:
        """Return the length in bytes of each image as it is stored."""
        ...


@dataclass(frozen=True)
class Listing:
    """Labelled images that are not decoded yet.

    Attributes:
        where: what to call the listing in messages.
        classes: class names; a label is an index into them.
        labels: (n,) int64.
        rows: (n,) int64, what the store knows each image by.
        store: where the images come from.
        ignored: files that are not taken for images, and why.
    """

    where: str
    classes: tuple[str, ...]
    labels: Integers
    rows: Integers
    store: Store
    ignored: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.labels.max(initial=-1) >= len(self.classes):
            raise DataError(
                f"{self.where}: label {self.labels.max()} but only {len(self.classes)} class "
                "names; name every class, counting labels from 0"
            )
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.where}: two classes have the same name; rename one")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, place: int, notes: list[str] | None = None) -> Pixels:
        """Return the pixels (h, w, 3) of the image at a place; raises `DataError`."""
        return self.store.read(int(self.rows[place]), notes)

    def name(self, place: int) -> str:
        """Return what to call the image at a place in messages."""
        return self.store.name(int(self.rows[place]))

    def content(self, place: int) -> bytes:
        """Return the stored bytes of the image at a place."""
        return self.store.content(int(self.rows[place]))

    def key(self, place: int) -> str:
        """Return the class and the name of the image at a place, wherever the set lies."""
        return f"{self.classes[self.labels[place]]}/{self.store.key(int(self.rows[place]))}"

    def lengths(self) -> Integers:
        """Return the length in bytes of each image as it is stored."""
        return self.store.lengths(self.rows)

    def only(self, keep: npt.NDArray[np.bool_]) -> Listing:
        """Return the listing of the images (n,) marked True."""
        return replace(self, labels=self.labels[keep], rows=self.rows[keep])


@dataclass(frozen=True)
class Parts:
    """What a reader finds: the training images, the test images if any, and where those are."""

    train: Listing
    test: Listing | None = None
    note: str = ""
    image_size: int | None = None


class Texts(Sequence[str]):
    """Many short strings in one block of memory.

    A list of a million paths takes ten times the room, and each worker process would end up with
    its own copy of it, because Python counts references inside the strings.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._block = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        begin, end = self._ends[index], self._ends[index + 1]
        return self._block[begin:end].tobytes().decode("utf-8", "surrogateescape")


class FileStore:
    """Image files on the disk.

    Args:
        root: what the paths are relative to.
        paths: of the files.
        keys: names that do not depend on where the set lies.
    """

    def __init__(self, root: Path, paths: Iterable[str], keys: Iterable[str]) -> None:
        self.root, self.paths, self.keys = str(root), Texts(paths), Texts(keys)

    def key(self, row: int) -> str:
        """Return the image's own name."""
        return str(self.keys[row])

    def name(self, row: int) -> str:
        """Return the path of the file."""
        return str(self.path(row))

    def path(self, row: int) -> Path:
        """Return the path of the file."""
        return Path(self.root, self.paths[row])

    def read(self, row: int, notes: list[str] | None = None) -> Pixels:
        """Return the pixels of the file."""
        path = self.path(row)
        return read_image(path, notes=notes)

    def content(self, row: int) -> bytes:
        """Return the bytes of the file."""
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path(row)}: cannot be read ({error.strerror})") from error

    def lengths(self, rows: Integers) -> Integers:
        """Return the length of each file; -1 where there is none."""
        return np.array([_length(self.path(row)) for row in rows.tolist()], dtype=np.int64)


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


class ArrayStore:
    """Images that are already pixels: an array (n, h, w, 3) uint8."""

    def __init__(self, where: str, pixels: npt.NDArray[np.uint8]) -> None:
        self.where, self.pixels = where, pixels

    def key(self, row: int) -> str:
        """Return the row."""
        return str(row)

    def name(self, row: int) -> str:
        """Return the file and the row."""
        return f"{self.where} image {row}"

    def read(self, row: int, notes: list[str] | None = None) -> Pixels:
        """Return the pixels of the row."""
        pixels: Pixels = self.pixels[row]
        return pixels

    def content(self, row: int) -> bytes:
        """Return the pixels as bytes."""
        content: bytes = self.pixels[row].tobytes()
        return content

    def lengths(self, rows: Integers) -> Integers:
        """Return how many bytes the pixels of each row take."""
        return np.full(len(rows), self.pixels[0].size if len(self.pixels) else 0, dtype=np.int64)


class ByteStore:
    """Encoded images inside other files, such as the rows of a table or the members of a shard.

    Args:
        where: what to call the whole in messages.
        fetch: the bytes of a row; picklable, such as a method of a plain object.
        keys: of the rows; by default their numbers.
        lengths: in bytes of each row, where they are known without reading.
    """

    def __init__(
        self,
        where: str,
        fetch: Callable[[int], bytes],
        keys: Sequence[str] | None = None,
        lengths: Integers | None = None,
    ) -> None:
        self.where, self.fetch, self.keys, self._lengths = where, fetch, keys, lengths

    def key(self, row: int) -> str:
        """Return the name of the row."""
        return str(row) if self.keys is None else self.keys[row]

    def name(self, row: int) -> str:
        """Return the whole and the row in it."""
        return f"{self.where} {'row ' if self.keys is None else ''}{self.key(row)}"

    def read(self, row: int, notes: list[str] | None = None) -> Pixels:
        """Return the pixels of the row."""
        return read_image(self.content(row), name=self.name(row), notes=notes)

    def content(self, row: int) -> bytes:
        """Return the bytes of the row."""
        return self.fetch(row)

    def lengths(self, rows: Integers) -> Integers:
        """Return the length in bytes of each row; 0 where only reading would tell."""
        return np.zeros(len(rows), np.int64) if self._lengths is None else self._lengths[rows]


def hold_out(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Split a listing into train and test, taking ``share`` of each class for the test.

    An image's draw depends on its class, its name and the seed alone, so the split does not
    depend on where the set lies or which classes are in use. One image per class stays in train.
    """
    draws = np.array(
        [
            random_generator(
                seed, "hold-out", listing.classes[label], listing.store.key(row)
            ).random()
            for label, row in zip(listing.labels, listing.rows.tolist(), strict=True)
        ]
    )
    held = np.zeros(len(draws), dtype=bool)
    for label in range(len(listing.classes)):
        members = np.flatnonzero(listing.labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[np.argsort(draws[members], kind="stable")][: max(0, count)]] = True
    return listing.only(~held), listing.only(held)


def plain(name: str) -> str:
    """Return a file name in one Unicode form: macOS and Linux store accents differently."""
    return unicodedata.normalize("NFC", name)


def numbered(labels: Integers) -> tuple[str, ...]:
    """Return names for classes that have none: their numbers."""
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def checked_labels(where: str, labels: npt.NDArray[Any], count: int) -> Integers:
    """Return integer labels (count,) of at least 0, or raise `DataError`."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels are {labels.dtype} {labels.shape}; give one integer for each of "
            f"the {count} images"
        )
    if count and labels.min() < 0:
        raise DataError(f"{where}: some labels are negative; remove the unlabelled images")
    return labels.astype(np.int64)


def from_array(
    where: str, images: npt.NDArray[Any], labels: npt.NDArray[Any], classes: tuple[str, ...] | None
) -> Listing:
    """Return the listing of an array of images, grey (n, h, w) or colour (n, h, w, 3)."""
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            f"{where}: images are {images.dtype} {images.shape}; save them as uint8 (n, h, w) or "
            "(n, h, w, 3)"
        )
    clean = checked_labels(where, labels, len(images))
    pixels = np.broadcast_to(images[..., None], (*images.shape, 3)) if grey else images
    rows = np.arange(len(clean))
    return Listing(where, classes or numbered(clean), clean, rows, ArrayStore(where, pixels))
