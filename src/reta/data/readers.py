"""Readers of data sets: one small function per kind, each listing images without decoding them.

A reader says which images there are, in file order, and how to get one. Choosing classes,
holding out a test part and decoding are the same for every kind and live in `sources`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from reta.data.intake import SUFFIXES
from reta.data.listing import FileStore, Listing, Parts, from_array, hold_out, plain
from reta.data.shards import read_shards
from reta.data.tables import TEST_NAMES, read_csv, read_parquet
from reta.errors import DataError


def read_digits() -> Parts:
    """Return scikit-learn's 8x8 digits; the test quarter is the same whatever a run's seed."""
    from sklearn.datasets import load_digits  # slow to import, and rarely needed

    digits = load_digits()
    greys = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # sixteen steps of ink
    classes = tuple(str(digit) for digit in range(10))
    train, test = hold_out(from_array("digits", greys, digits.target, classes), 0.25, seed=0)
    return Parts(train, test, "a fixed quarter of each class", image_size=16)


def read_folder(root: Path) -> Parts:
    """Return a folder of class folders, or one with such folders for train and for test."""
    if not _folders(root / "train"):
        return Parts(_class_folders(root))
    train = _class_folders(root / "train")
    test = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
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
    train = from_array(str(path), arrays["images"], arrays["labels"], classes)
    if "test_images" not in arrays:
        return Parts(train)
    where = f"{path} (test)"
    labels = arrays.get("test_labels", np.empty(0, dtype=np.int64))
    test = from_array(where, arrays["test_images"], labels, train.classes)
    return Parts(train, test, "the arrays test_images and test_labels")


def _folders(root: Path) -> list[Path]:
    """Return the visible sub-folders, ordered by name."""
    if not root.is_dir():
        return []
    folders = [entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."]
    return sorted(folders, key=lambda folder: plain(folder.name))


def _class_folders(root: Path) -> Listing:
    """Return the images below each class folder, in the order of their names."""
    folders = _folders(root)
    classes = tuple(plain(folder.name) for folder in folders)
    if not folders or set(classes) <= {"train", *TEST_NAMES}:
        raise DataError(
            f"{root}: no class folders; expected one folder of images per class, or train/ and "
            "test/ that hold such folders"
        )
    paths: list[str] = []
    keys: list[str] = []
    labels: list[int] = []
    ignored = [(str(file), "not in a class folder") for file in _visible_files(root)]
    for label, folder in enumerate(folders):
        inside = sorted((plain(name), name) for name in _files_below(folder))
        images = [(key, name) for key, name in inside if _is_image(key)]
        ignored += [(str(folder / name), _why_not(name)) for key, name in set(inside) - set(images)]
        paths += [f"{folder.name}/{name}" for _, name in images]
        keys += [key for key, _ in images]
        labels += [label] * len(images)
    return Listing(
        str(root),
        classes,
        np.array(labels, dtype=np.int64),
        np.arange(len(paths)),
        FileStore(root, paths, keys),
        tuple(sorted(ignored)),
    )


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of the files below a folder, relative to it, that are not hidden."""
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        below = os.path.relpath(place, folder)
        prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
        yield from (prefix + name for name in files if name[0] != ".")


def _visible_files(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name[0] != "." and entry.is_file()]


def _is_image(key: str) -> bool:
    return os.path.splitext(key)[1].lower() in SUFFIXES  # noqa: PTH122 - Path is slow on millions


def _why_not(name: str) -> str:
    return f"not taken for an image by its ending {Path(name).suffix!r}; convert or remove it"


FILES: dict[str, Callable[[Path], Parts]] = {
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tar": read_shards,
}
NAMED: dict[str, Callable[[], Parts]] = {"digits": read_digits}
