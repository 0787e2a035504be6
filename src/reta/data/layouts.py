"""The layouts in which authors publish their sets, read into listings.

Where torchvision's loader of a set unpickles (CIFAR), our own reader takes the binary version its
authors publish beside it; where it merely decodes, ours sends every image through the intake.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reta.data.listing import FileStore, Listing, Parts, from_array, hold_out
from reta.data.readers import read_folder
from reta.errors import DataError

# Positions in the order of the 1000 ImageNet folder names (wnids).
SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}
DIGITS = tuple("0123456789")
GARMENTS = (
    "t-shirt_top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into one error that names it."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise DataError(f"{path}: {reason}; download the set again") from error


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return an array in the format of MNIST: type, axes, lengths, then bytes; maybe gzipped."""
    zipped = path.with_name(path.name + ".gz")
    with _reading(path):
        content = path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
        if content[:3] != b"\0\0\x08":
            raise ValueError("no array of bytes in IDX format")
        axes = content[3]
        shape = np.frombuffer(content, ">u4", axes, 4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def mnist(classes: tuple[str, ...]) -> Callable[[Path], Parts]:
    """Return the reader of a set in the four IDX files of MNIST."""

    def read(place: Path) -> Parts:
        def part(prefix: str) -> Listing:
            images = _read_idx(place / f"{prefix}-images-idx3-ubyte")
            labels = _read_idx(place / f"{prefix}-labels-idx1-ubyte")
            return from_array(f"{place}/{prefix}", images, labels, classes)

        return Parts(part("train"), part("t10k"), "the set's own test images")

    return read


def cifar(
    classes_file: str, labels: int, train: Sequence[str], test: str
) -> Callable[[Path], Parts]:
    """Return the reader of CIFAR's binary version: label bytes, then 3072 pixels, plane by plane.

    Of two label bytes the second is the fine one.
    """

    def read(place: Path) -> Parts:
        with _reading(place / classes_file):
            classes = tuple((place / classes_file).read_text().split())

        def part(names: Sequence[str]) -> Listing:
            rows = []
            for name in names:
                with _reading(place / name):
                    content = np.frombuffer((place / name).read_bytes(), np.uint8)
                    rows.append(content.reshape(-1, labels + 3072))
            table = np.concatenate(rows)
            images = table[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return from_array(f"{place}/{names[0]}", images, table[:, labels - 1], classes)

        return Parts(part(train), part([test]), "the set's own test images")

    return read


def svhn(place: Path) -> Parts:
    """Read the cropped digits: a MATLAB file of images and labels for each part."""
    from scipy.io import loadmat

    def part(name: str) -> Listing:
        with _reading(place / name):
            table = loadmat(place / name)
            images = table["X"].transpose(3, 0, 1, 2)
            labels = table["y"].ravel().astype(np.int64) % 10  # ten stands for zero
        return from_array(str(place / name), images, labels, DIGITS)

    test = part("test_32x32.mat")
    return Parts(part("train_32x32.mat"), test, "the set's own test images")


def stl10(place: Path) -> Parts:
    """Read raw bytes, column by column, and labels from 1; the unlabelled images are left."""
    with _reading(place / "class_names.txt"):
        classes = tuple((place / "class_names.txt").read_text().split())

    def part(name: str) -> Listing:
        with _reading(place / f"{name}_X.bin"):
            content = np.frombuffer((place / f"{name}_X.bin").read_bytes(), np.uint8)
            images = content.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # stored by columns
        with _reading(place / f"{name}_y.bin"):
            labels = np.frombuffer((place / f"{name}_y.bin").read_bytes(), np.uint8).astype(int) - 1
        return from_array(str(place / name), images, labels, classes)

    return Parts(part("train"), part("test"), "the set's own test images", image_size=96)


def _files(
    place: Path, paths: Sequence[str], labels: Sequence[int], names: Sequence[str]
) -> Listing:
    rows = np.arange(len(paths))
    store = FileStore(place, paths, paths)
    return Listing(str(place), tuple(names), np.array(labels, dtype=np.int64), rows, store)


def pets(place: Path) -> Parts:
    """Lines of ``NAME ID SPECIES BREED``; the breed is in the name, IDs count from 1."""

    def rows(name: str) -> list[tuple[str, int]]:
        path = place / "annotations" / name
        with _reading(path):
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            return [(line[0], int(line[1]) - 1) for line in lines if line[0][0] != "#"]

    train, test = rows("trainval.txt"), rows("test.txt")
    breeds = {label: name.rpartition("_")[0] for name, label in [*train, *test]}
    names = [breeds.get(label, str(label)) for label in range(max(breeds) + 1)]

    def part(images: list[tuple[str, int]]) -> Listing:
        paths = [f"images/{name}.jpg" for name, _ in images]
        return _files(place, paths, [label for _, label in images], names)

    return Parts(part(train), part(test), "the set's own test images")


def flowers(place: Path) -> Parts:
    """Numbers of images in ``setid.mat``; a class for each, from 1, in ``imagelabels.mat``."""
    from scipy.io import loadmat

    with _reading(place):
        labels = loadmat(place / "imagelabels.mat")["labels"].ravel().astype(int) - 1
        split = {
            name: ids.ravel()
            for name, ids in loadmat(place / "setid.mat").items()
            if name[0] != "_"
        }
        names = [f"{label + 1:03d}" for label in range(labels.max() + 1)]

        def part(*keys: str) -> Listing:
            numbers = np.concatenate([split[key] for key in keys]).astype(int)
            paths = [f"jpg/image_{number:05d}.jpg" for number in numbers]
            return _files(place, paths, labels[numbers - 1].tolist(), names)

        return Parts(part("trnid", "valid"), part("tstid"), "the set's own test images")


def tiny_imagenet(place: Path) -> Parts:
    """``train/WNID/images/*.JPEG``; the validation images are one folder and a table."""
    train = read_folder(place / "train").train
    table = place / "val" / "val_annotations.txt"
    if not table.exists():  # many copies have folders here too
        return read_folder(place)
    with _reading(table):
        rows = [line.split("\t")[:2] for line in table.read_text().splitlines() if line]
        label = {name: index for index, name in enumerate(train.classes)}
        paths = [f"val/images/{name}" for name, _ in rows]
        test = _files(place, paths, [label[wnid] for _, wnid in rows], train.classes)
    return Parts(train, test, "the set's own validation images", image_size=64)


def imagenet(place: Path) -> Parts:
    """Read ``train/WNID/*.JPEG`` and, sorted into folders like it, ``val``: a thousand classes."""
    parts = read_folder(place)
    if len(parts.train.classes) != 1000:
        raise DataError(
            f"{place}/train: {len(parts.train.classes)} class folders, ImageNet-1K has 1000; "
            "for a folder of some classes give its path instead of a name"
        )
    return parts


def subset(name: str) -> Callable[[Path], Parts]:
    """Return the reader of some classes of ImageNet-1K, see `SUBSETS`."""

    def read(place: Path) -> Parts:
        parts = imagenet(place)
        if parts.test is None:
            raise DataError(f"{place}: no val/ beside train/; put the validation images there")
        order = [parts.train.classes[index] for index in SUBSETS[name]]
        return Parts(_picked(parts.train, order), _picked(parts.test, order), parts.note)

    return read


def _picked(listing: Listing, order: Sequence[str]) -> Listing:
    """Return the images of some classes, labelled by their order here."""
    place = {name: label for label, name in enumerate(order)}
    labels = np.array([place.get(name, -1) for name in listing.classes])[listing.labels]
    keep = labels >= 0
    return Listing(listing.where, tuple(order), labels[keep], listing.rows[keep], listing.store)


def eurosat(place: Path) -> Parts:
    """Read ten folders of classes, and hold a fixed fifth of each out."""
    train, test = hold_out(read_folder(place).train, 0.2, seed=0)
    return Parts(train, test, "a fixed fifth of each class, as the set has no split", image_size=64)
