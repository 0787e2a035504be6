"""Readers of data sets: one small function per kind, each listing images without decoding them.

A reader says which images there are, in file order, and how to get one. Choosing classes,
holding out a test part and decoding are the same for every kind and live in `sources`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reta.data.intake import SUFFIXES, Pixels, read_image
from reta.errors import DataError, UsageError
from reta.runtime import random_generator

Integers = npt.NDArray[np.int64]

_TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True)
class Listing:
    """Labelled images that are not decoded yet.

    Attributes:
        where: what to call the listing in messages.
        classes: class names; a label is an index into them.
        labels: (n,) int64.
        rows: (n,) what to pass to ``key`` and ``read``.
        key: a name of the image that does not depend on where the set lies.
        read: the pixels (h, w, 3) of an image; raises DataError.
    """

    where: str
    classes: tuple[str, ...]
    labels: Integers
    rows: Integers
    key: Callable[[int], str]
    read: Callable[[int], Pixels]

    def __post_init__(self) -> None:
        if self.labels.max(initial=-1) >= len(self.classes):
            raise DataError(
                f"{self.where}: label {self.labels.max()} but only {len(self.classes)} class "
                "names; name every class, counting labels from 0"
            )
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.where}: two classes have the same name; rename one")

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


def hold_out(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Split a listing into train and test, taking ``share`` of each class for the test.

    An image's draw depends on its class, its name and the seed alone, so the split does not
    depend on where the set lies or which classes are in use. One image per class stays in train.
    """
    draws = np.array(
        [
            random_generator(seed, "hold-out", listing.classes[label], listing.key(row)).random()
            for label, row in zip(listing.labels, listing.rows, strict=True)
        ]
    )
    held = np.zeros(len(draws), dtype=bool)
    for label in range(len(listing.classes)):
        members = np.flatnonzero(listing.labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[np.argsort(draws[members], kind="stable")][: max(0, count)]] = True
    return listing.only(~held), listing.only(held)


def read_digits() -> Parts:
    """Return scikit-learn's 8x8 digits; the test quarter is the same whatever a run's seed."""
    from sklearn.datasets import load_digits  # slow to import, and rarely needed

    digits = load_digits()
    greys = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # sixteen steps of ink
    classes = tuple(str(digit) for digit in range(10))
    train, test = hold_out(_from_array("digits", greys, digits.target, classes), 0.25, seed=0)
    return Parts(train, test, "a fixed quarter of each class", image_size=16)


def read_folder(root: Path) -> Parts:
    """Return a folder of class folders, or one with such folders for train and for test."""
    if not _folders(root / "train"):
        return Parts(_class_folders(root))
    train = _class_folders(root / "train")
    test = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    if test is None:
        return Parts(train)
    return Parts(train, _class_folders(test), f"the folder {test.name}/")


def read_npz(path: Path) -> Parts:
    """Return a NumPy archive: images, labels and, optionally, classes, test_images, test_labels."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and numpy's header parser each raise their own
        raise DataError(
            f"{path}: not a readable .npz of plain arrays ({error}); write it again with "
            "numpy.savez, without object arrays"
        ) from error
    if not {"images", "labels"} <= arrays.keys():
        raise DataError(
            f"{path}: has {', '.join(sorted(arrays)) or 'nothing'}; it needs 'images' and 'labels'"
        )
    named = "classes" in arrays
    classes = tuple(np.atleast_1d(arrays["classes"]).astype(str).tolist()) if named else None
    train = _from_array(str(path), arrays["images"], arrays["labels"], classes)
    if "test_images" not in arrays:
        return Parts(train)
    where = f"{path} (test)"
    labels = arrays.get("test_labels", np.empty(0, dtype=np.int64))
    test = _from_array(where, arrays["test_images"], labels, train.classes)
    return Parts(train, test, "the arrays test_images and test_labels")


def read_parquet(path: Path) -> Parts:
    """Return a Parquet file, or a folder of them by split, in the Hugging Face layout."""
    if path.is_file():
        return Parts(_parquet([path]))
    train = _parquet(parquet_files(path, "train"))
    for split in _TEST_NAMES:
        if files := parquet_files(path, split):
            return Parts(train, _parquet(files), f"the split {split}")
    return Parts(train)


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return the Parquet files of one split: ``train.parquet`` or ``train-00000-of-00002…``."""
    return sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])


def _folders(root: Path) -> list[Path]:
    """Return the visible sub-folders, ordered by name."""
    if not root.is_dir():
        return []
    folders = [entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."]
    return sorted(folders, key=lambda folder: _plain(folder.name))


def _plain(name: str) -> str:
    """Return a file name in one Unicode form: macOS and Linux store accents differently."""
    return unicodedata.normalize("NFC", name)


def _class_folders(root: Path) -> Listing:
    """Return the images below each class folder, in the order of their names."""
    folders = _folders(root)
    classes = tuple(_plain(folder.name) for folder in folders)
    if not folders or set(classes) <= {"train", *_TEST_NAMES}:
        raise DataError(
            f"{root}: no class folders; expected one folder of images per class, or train/ and "
            "test/ that hold such folders"
        )
    files: list[Path] = []
    keys: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        inside = {_plain(file.relative_to(folder).as_posix()): file for file in folder.rglob("*")}
        images = [key for key in sorted(inside) if _is_image(key)]
        files += [inside[key] for key in images]
        keys += images
        labels += [label] * len(images)
    return Listing(
        str(root),
        classes,
        np.array(labels, dtype=np.int64),
        np.arange(len(files)),
        keys.__getitem__,
        lambda row: read_image(files[row]),
    )


def _is_image(key: str) -> bool:
    hidden = any(part.startswith(".") for part in key.split("/"))
    return not hidden and Path(key).suffix.lower() in SUFFIXES


def _from_array(
    where: str, images: npt.NDArray[Any], labels: npt.NDArray[Any], classes: tuple[str, ...] | None
) -> Listing:
    """Return the listing of an array of images, grey (n, h, w) or colour (n, h, w, 3)."""
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            f"{where}: images are {images.dtype} {images.shape}; save them as uint8 (n, h, w) or "
            "(n, h, w, 3)"
        )
    clean = _checked_labels(where, labels, len(images))
    pixels = np.broadcast_to(images[..., None], (*images.shape, 3)) if grey else images
    return Listing(
        where, classes or _numbered(clean), clean, np.arange(len(clean)), str, pixels.__getitem__
    )


def _numbered(labels: Integers) -> tuple[str, ...]:
    """Return names for classes that have none: their numbers."""
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _checked_labels(where: str, labels: npt.NDArray[Any], count: int) -> Integers:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels are {labels.dtype} {labels.shape}; give one integer for each of "
            f"the {count} images"
        )
    if count and labels.min() < 0:
        raise DataError(f"{where}: some labels are negative; remove the unlabelled images")
    return labels.astype(np.int64)


def _parquet(files: list[Path]) -> Listing:
    """Return the rows of Parquet files with columns image (bytes, path) and label."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(
            f"{files[0]}: reading Parquet needs pyarrow; run: pip install 'reta[parquet]'"
        ) from error
    where = ", ".join(str(file) for file in files)
    try:
        table = pq.read_table([str(file) for file in files], columns=["image", "label"])
        column = pc.struct_field(table["image"], "bytes")
    except (KeyError, OSError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: not a Parquet file with the columns image (bytes, path) and label "
            f"({error}); rename the columns or write the file again"
        ) from error
    labels = _checked_labels(where, table["label"].to_numpy(), len(table))
    stored = (table.schema.metadata or {}).get(b"huggingface")
    classes = _huggingface_names(stored) or _numbered(labels)

    def read(row: int) -> Pixels:
        name = f"{where} row {row}"
        content: bytes | None = column[row].as_py()
        if content is None:
            raise DataError(f"{name}: no image bytes; embed the images in the file")
        return read_image(content, name=name)

    return Listing(where, classes, labels, np.arange(len(labels)), str, read)


def _huggingface_names(metadata: bytes | None) -> tuple[str, ...]:
    """Return the class names that `datasets` leaves in a Parquet schema, or nothing."""
    try:
        return tuple(json.loads(metadata or b"")["info"]["features"]["label"]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


FILES: dict[str, Callable[[Path], Parts]] = {".npz": read_npz, ".parquet": read_parquet}
NAMED: dict[str, Callable[[], Parts]] = {"digits": read_digits}
