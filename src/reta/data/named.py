"""Image sets known by name: where their files lie, where they come from, how they are read.

Read from the files their authors publish, in their own layout, so that a copy one already has will
do. Where torchvision's loader of a set unpickles (CIFAR), our own reader takes the binary version
its authors publish beside it; where it merely decodes, ours sends every image through the intake.
torchvision fetches the archives and knows their checksums.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reta.data.listing import FileStore, Listing, Parts, from_array, hold_out
from reta.data.readers import read_folder
from reta.errors import DataError
from reta.progress import log

# Positions in the order of the 1000 ImageNet folder names (wnids).
SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}
_DIGITS = tuple("0123456789")
_GARMENTS = (
    "t-shirt_top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip
_CIFAR = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Named:
    """A set that can be asked for by name.

    Attributes:
        folders: where it may lie below the root, the first that exists is read.
        needs: what must lie there, for a message.
        read: reads the folder.
        fetch: downloads it into the root; None where its authors want to be asked first.
        page: where it comes from.
    """

    folders: tuple[str, ...]
    needs: str
    read: Callable[[Path], Parts]
    fetch: Callable[[Path], None] | None
    page: str


def default_root() -> Path:
    """Return where named sets lie: ``RETA_DATA``, or ``~/.cache/reta``."""
    return Path(os.environ.get("RETA_DATA") or Path.home() / ".cache" / "reta").expanduser()


def read_named(name: str, root: Path | None = None, download: bool = True) -> Parts:
    """Return a set by name, downloading it where that is allowed and it is not there yet.

    Args:
        name: one of `SETS`.
        root: the folder that holds sets; see `default_root`.
        download: whether to fetch a set that is not there.

    Raises:
        DataError: saying what to put where, if the set is not there and could not be fetched.
    """
    known, root = SETS[name], root or default_root()
    place = _place(known, root)
    why = ""
    if place is None and known.fetch and download:
        try:
            log.info("%s is not in %s: downloading it from %s", name, root, known.page)
            root.mkdir(parents=True, exist_ok=True)
            known.fetch(root)
            place = _place(known, root)
        except (OSError, RuntimeError, tarfile.TarError) as error:
            why = f" (downloading failed: {error})"
    if place is None:
        folder = root / known.folders[0]
        raise DataError(
            f"{name}: not found below {root}{why}; put {known.needs} into {folder}, or name "
            f"another folder with --root or RETA_DATA; it comes from {known.page}"
        )
    return known.read(place)


def _place(known: Named, root: Path) -> Path | None:
    return next((root / name for name in known.folders if (root / name).is_dir()), None)


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


def _mnist(classes: tuple[str, ...]) -> Callable[[Path], Parts]:
    def read(place: Path) -> Parts:
        def part(prefix: str) -> Listing:
            images = _read_idx(place / f"{prefix}-images-idx3-ubyte")
            labels = _read_idx(place / f"{prefix}-labels-idx1-ubyte")
            return from_array(f"{place}/{prefix}", images, labels, classes)

        return Parts(part("train"), part("t10k"), "the set's own test images")

    return read


def _cifar(
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


def _svhn(place: Path) -> Parts:
    from scipy.io import loadmat

    def part(name: str) -> Listing:
        with _reading(place / name):
            table = loadmat(place / name)
            images = table["X"].transpose(3, 0, 1, 2)
            labels = table["y"].ravel().astype(np.int64) % 10  # ten stands for zero
        return from_array(str(place / name), images, labels, _DIGITS)

    test = part("test_32x32.mat")
    return Parts(part("train_32x32.mat"), test, "the set's own test images")


def _stl10(place: Path) -> Parts:
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


def _pets(place: Path) -> Parts:
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


def _flowers(place: Path) -> Parts:
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


def _tiny_imagenet(place: Path) -> Parts:
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


def _imagenet(place: Path) -> Parts:
    parts = read_folder(place)
    if len(parts.train.classes) != 1000:
        raise DataError(
            f"{place}/train: {len(parts.train.classes)} class folders, ImageNet-1K has 1000; "
            "for a folder of some classes give its path instead of a name"
        )
    return parts


def _subset(name: str) -> Callable[[Path], Parts]:
    def read(place: Path) -> Parts:
        parts = _imagenet(place)
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


def _eurosat(place: Path) -> Parts:
    train, test = hold_out(read_folder(place).train, 0.2, seed=0)
    return Parts(train, test, "a fixed fifth of each class, as the set has no split", image_size=64)


def _torchvision(
    name: str, folder: str = "", splits: Sequence[str | None] = (None,)
) -> Callable[[Path], None]:
    """Return what downloads a set with torchvision, which checks its MD5."""

    def fetch(root: Path) -> None:
        import torchvision

        loader = getattr(torchvision.datasets, name)
        for split in splits:
            chosen = {} if split is None else {"split": split}
            loader(root=str(root / folder), download=True, **chosen)

    return fetch


def _archive(url: str, md5: str) -> Callable[[Path], None]:
    """Return what downloads a tar archive and unpacks it, trusting none of its paths."""

    def fetch(root: Path) -> None:
        from torchvision.datasets.utils import download_url

        download_url(url, str(root), md5=md5)
        archive = root / url.rpartition("/")[2]
        with tarfile.open(archive) as opened:
            opened.extractall(root, filter="data")
        archive.unlink()

    return fetch


_MNIST_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte and both t10k files (or .gz)"
_TREE = "train/ and val/ with a folder of JPEG files for each of the 1000 wnids"
_IMAGENET_PAGE = "https://image-net.org/download.php (ILSVRC 2012)"

SETS: dict[str, Named] = {
    "mnist": Named(
        ("MNIST/raw", "mnist"),
        _MNIST_FILES,
        _mnist(_DIGITS),
        _torchvision("MNIST"),
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion-mnist": Named(
        ("FashionMNIST/raw", "fashion-mnist"),
        _MNIST_FILES,
        _mnist(_GARMENTS),
        _torchvision("FashionMNIST"),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "cifar10": Named(
        ("cifar-10-batches-bin",),
        "data_batch_1.bin … data_batch_5.bin, test_batch.bin and batches.meta.txt (the binary "
        "version)",
        _cifar(
            "batches.meta.txt", 1, [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
        ),
        _archive(_CIFAR + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Named(
        ("cifar-100-binary",),
        "train.bin, test.bin and fine_label_names.txt (the binary version)",
        _cifar("fine_label_names.txt", 2, ["train.bin"], "test.bin"),
        _archive(_CIFAR + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "svhn": Named(
        ("svhn",),
        "train_32x32.mat and test_32x32.mat",
        _svhn,
        _torchvision("SVHN", "svhn", splits=("train", "test")),
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "stl10": Named(
        ("stl10_binary",),
        "train_X.bin, train_y.bin, test_X.bin, test_y.bin and class_names.txt",
        _stl10,
        _torchvision("STL10"),
        "https://cs.stanford.edu/~acoates/stl10/",
    ),
    "eurosat": Named(
        ("eurosat/2750", "eurosat"),
        "the ten class folders of EuroSAT.zip (RGB)",
        _eurosat,
        _torchvision("EuroSAT"),
        "https://github.com/phelber/eurosat",
    ),
    "oxford-pets": Named(
        ("oxford-iiit-pet",),
        "images/ and annotations/",
        _pets,
        _torchvision("OxfordIIITPet"),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "flowers102": Named(
        ("flowers-102",),
        "jpg/, imagelabels.mat and setid.mat",
        _flowers,
        _torchvision("Flowers102"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "tiny-imagenet": Named(
        ("tiny-imagenet-200", "tiny-imagenet"),
        "train/ and val/ of tiny-imagenet-200.zip",
        _tiny_imagenet,
        None,
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "imagenet-1k": Named(("imagenet", "ILSVRC2012"), _TREE, _imagenet, None, _IMAGENET_PAGE),
    **{
        name: Named(("imagenet", "ILSVRC2012"), _TREE, _subset(name), None, _IMAGENET_PAGE)
        for name in SUBSETS
    },
}
