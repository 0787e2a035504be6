"""Image sets known by name: where their files lie, where they come from, how they are read.

Read from the files their authors publish, in their own layout, so that a copy one already has will
do. torchvision fetches the archives and knows their checksums.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reta.data import layouts
from reta.data.layouts import SUBSETS
from reta.data.listing import Parts
from reta.errors import DataError
from reta.progress import log

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
        layouts.mnist(layouts.DIGITS),
        _torchvision("MNIST"),
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion-mnist": Named(
        ("FashionMNIST/raw", "fashion-mnist"),
        _MNIST_FILES,
        layouts.mnist(layouts.GARMENTS),
        _torchvision("FashionMNIST"),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "cifar10": Named(
        ("cifar-10-batches-bin",),
        "data_batch_1.bin … data_batch_5.bin, test_batch.bin and batches.meta.txt (the binary "
        "version)",
        layouts.cifar(
            "batches.meta.txt", 1, [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
        ),
        _archive(_CIFAR + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Named(
        ("cifar-100-binary",),
        "train.bin, test.bin and fine_label_names.txt (the binary version)",
        layouts.cifar("fine_label_names.txt", 2, ["train.bin"], "test.bin"),
        _archive(_CIFAR + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "svhn": Named(
        ("svhn",),
        "train_32x32.mat and test_32x32.mat",
        layouts.svhn,
        _torchvision("SVHN", "svhn", splits=("train", "test")),
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "stl10": Named(
        ("stl10_binary",),
        "train_X.bin, train_y.bin, test_X.bin, test_y.bin and class_names.txt",
        layouts.stl10,
        _torchvision("STL10"),
        "https://cs.stanford.edu/~acoates/stl10/",
    ),
    "eurosat": Named(
        ("eurosat/2750", "eurosat"),
        "the ten class folders of EuroSAT.zip (RGB)",
        layouts.eurosat,
        _torchvision("EuroSAT"),
        "https://github.com/phelber/eurosat",
    ),
    "oxford-pets": Named(
        ("oxford-iiit-pet",),
        "images/ and annotations/",
        layouts.pets,
        _torchvision("OxfordIIITPet"),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "flowers102": Named(
        ("flowers-102",),
        "jpg/, imagelabels.mat and setid.mat",
        layouts.flowers,
        _torchvision("Flowers102"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "tiny-imagenet": Named(
        ("tiny-imagenet-200", "tiny-imagenet"),
        "train/ and val/ of tiny-imagenet-200.zip",
        layouts.tiny_imagenet,
        None,
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "imagenet-1k": Named(("imagenet", "ILSVRC2012"), _TREE, layouts.imagenet, None, _IMAGENET_PAGE),
    **{
        name: Named(("imagenet", "ILSVRC2012"), _TREE, layouts.subset(name), None, _IMAGENET_PAGE)
        for name in SUBSETS
    },
}
