"""Real image sets: a built-in one, folders, NumPy archives and Parquet files, all read alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from reta.data.hub import read_hub
from reta.data.images import DecodedImages, ImageSet, StreamedImages, Triple, available_cores
from reta.data.intake import MIN_SIDE, Pixels, square
from reta.data.listing import Listing, Parts, hold_out
from reta.data.named import SETS, read_named
from reta.data.readers import FILES, NAMED, read_folder
from reta.data.refusals import BadImages, LeftOut, find_bad, leave_out
from reta.data.scan import Report, scan_parts
from reta.data.shards import read_shards
from reta.data.tables import parquet_files, read_parquet
from reta.errors import DataError, UsageError, unknown
from reta.progress import log, track

HELD_BYTES = 8 * 10**9
"""Decoded sets up to this size are held in memory; the same on every machine."""

_SIZES = (32, 64, 128, 224)
_PROBES = 100  # images whose size is looked at to choose a common one
_LISTED = 5  # bad images or classes that a message names
_THREADS_PER_CORE = 2  # the second hides what a disk makes the first wait; more get in the way


@dataclass(frozen=True, eq=False)
class Source:
    """A real image set, ready to train and test on.

    Attributes:
        name: a short name, without its place on the disk.
        train: the images to distil.
        test: the images to measure on, of the same classes.
        flip: whether a mirrored image still shows its class (not so for digits).
        note: where the test images come from.
        fingerprint: sha256 of what the two parts hold, see `ImageSet.fingerprint`.
        left_out: images that could not be used.
        leaked: test images that are training images too, pixel for pixel; None if not looked for.
    """

    name: str
    train: ImageSet
    test: ImageSet
    flip: bool
    note: str
    fingerprint: str
    left_out: tuple[LeftOut, ...] = ()
    leaked: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return self.train.classes

    @property
    def image_size(self) -> int:
        """The side of every image, in pixels."""
        return self.train.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """The side of an image in pixels, the classes, and the training images of all of them."""
        return self.image_size, len(self.classes), len(self.train)

    @property
    def mean_std(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation per channel of the training images in [0, 1].

        See `ImageSet.mean_std`.
        """
        return self.train.mean_std


def known_names() -> list[str]:
    """Return the names of the sets that need no path."""
    return [*NAMED, *SETS]


def open_source(
    data: str,
    image_size: int | None = None,
    seed: int = 0,
    classes: Sequence[str] | int | None = None,
    per_class: int | None = None,
    test_per_class: int | None = None,
    test: str | None = None,
    max_size: int | None = None,
    stream: bool | None = None,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    left_out: Collection[str] | None = None,
    root: str | None = None,
    download: bool = True,
) -> Source:
    """Read an image set, decoding only what is asked for.

    Args:
        data: a name from `known_names`; ``hf:owner/name`` of the Hugging Face hub; a folder with
            one folder of images per class, or with such folders in ``train/`` and ``test/`` (or
            ``val/``, ``validation/``); a ``.npz`` with ``images`` (n, h, w[, 3]) uint8, ``labels``
            and, optionally, ``classes``, ``test_images`` and ``test_labels``; a ``.parquet`` file
            or a folder of ``train.parquet`` and ``test.parquet`` in the Hugging Face layout; a
            ``.csv`` or ``.parquet`` table of paths and labels; a ``.tar`` or a folder of
            WebDataset shards.
        image_size: side in pixels; by default what suits the images (16, 32, 64, 128 or 224).
        seed: of the test part, where the set has none and a fifth of each class is held out.
            Another seed is another data set, with another fingerprint.
        classes: how many classes, or their names; all by default. Labels follow this order.
        per_class: most training images per class, the first in file order.
        test_per_class: most test images per class, the first in file order.
        test: a set of the same classes to take the test images from instead.
        max_size: largest side where ``image_size`` is left open.
        stream: whether images stay in their files; by default where they would take more than
            8 GB decoded.
        workers: processes that decode streamed images; as many as there are processors by default.
        bad_images: what to do where an image cannot be used: ``fail``, or leave it out (``skip``,
            and for who keeps a run folder ``quarantine``) as long as those are few.
        left_out: part and key of the images that were left out of a streamed set before, which
            saves the pass over it that finds them.
        root: where sets known by name lie; ``RETA_DATA`` or ``~/.cache/reta`` by default.
        download: whether such a set may be fetched if it is not there.

    Raises:
        UsageError: if there is no such set or class, or an option makes no sense.
        DataError: if images, labels or class names cannot be used.
    """
    if image_size is not None and image_size < MIN_SIDE:
        raise UsageError(f"image size {image_size}: use at least {MIN_SIDE} px")
    for most in (per_class, test_per_class):
        if most is not None and most < 1:
            raise UsageError(f"{most} images per class: use at least 1")
    name, parts = find_parts(data, seed, classes, test, root, download)
    train, held, note = parts.train, parts.test, parts.note
    assert held is not None
    train, held = _first(train, per_class), _first(held, test_per_class)
    size = image_size or parts.image_size or _natural_size(train)
    if image_size is None and max_size is not None and size > max_size:
        log.info(
            "%s: images are brought to %d px of about %d; --image-size decides",
            name,
            max_size,
            size,
        )
        size = max_size
    if stream is None:
        stream = (len(train) + len(held)) * 3 * size**2 > HELD_BYTES
    if stream:
        log.info("%s: %d images of %d px are streamed from their files", name, len(train), size)
    how = _Opening(stream, workers, bad_images, left_out)
    opened, left = _open(train, size, "training", how)
    tested, left_of_test = _open(held, size, "test", how)
    leaked = _leaked(opened, tested)
    if leaked:
        log.warning(
            "%s: %d of %d test images are training images too, so accuracy will be flattered; "
            "`reta scan` names them",
            name,
            leaked,
            len(tested),
        )
    return Source(
        name,
        opened,
        tested,
        _keeps_meaning(name),
        note,
        _fingerprint(opened, tested),
        left + left_of_test,
        leaked,
    )


@dataclass(frozen=True)
class _Opening:
    """How both parts of a set are opened."""

    stream: bool
    workers: int | None
    bad_images: BadImages
    left_out: Collection[str] | None


def find_parts(
    data: str,
    seed: int = 0,
    classes: Sequence[str] | int | None = None,
    test: str | None = None,
    root: str | None = None,
    download: bool = True,
) -> tuple[str, Parts]:
    """Return the short name of a set, and its training and test images, listed and not decoded.

    See `open_source` for the arguments and errors.
    """
    name, parts = _find(data, root, download)
    if test is not None:
        other_name, other = _find(test, root, download)
        parts = replace(parts, test=other.test or other.train, note=f"the set {other_name}")
    chosen = _choose(parts.train, classes)
    train, held, note = _select(parts.train, chosen), parts.test, parts.note
    if held is None:
        train, held = hold_out(train, 0.2, seed)
        note = f"a fifth of each class, held out with seed {seed}"
    else:
        _check_same_classes(parts.train, held)
        held = _select(held, chosen)
    if not len(held.labels):
        raise DataError(f"{train.where}: too few images to hold some out; add a test set")
    return name, replace(parts, train=train, test=held, note=note)


def _find(data: str, root: str | None = None, download: bool = True) -> tuple[str, Parts]:
    """Return the short name of a set and what its reader lists."""
    if data in NAMED:
        return data, NAMED[data]()
    if data in SETS:
        return data, read_named(data, Path(root).expanduser() if root else None, download)
    if data.startswith("hf:"):
        return data[3:].rstrip("/").rpartition("/")[2].partition(":")[0], read_hub(data[3:])
    path = Path(data).expanduser().resolve()
    if path.is_dir():
        return path.name, _folder_reader(path)(Path(data).expanduser().absolute())
    if path.is_file() and path.suffix in FILES:
        name = path.parent.name if path.stem == "train" else path.stem
        return name, FILES[path.suffix](Path(data).expanduser().absolute())
    if not path.exists() and set(data) & set("/\\."):
        raise UsageError(f"{data}: no such file or folder; check the path")
    *endings, last = FILES
    files = f"a {', '.join(endings)} or {last} file"
    raise unknown("image set", data, [*known_names(), "a folder", files])


def _folder_reader(path: Path) -> Callable[[Path], Parts]:
    """Return what reads a folder: of tables, of shards, or of class folders."""
    if parquet_files(path, "train"):
        return read_parquet
    return read_shards if any(path.glob("*.tar")) else read_folder


def _choose(listing: Listing, classes: Sequence[str] | int | None) -> tuple[str, ...]:
    """Return the names of the classes to use."""
    known = listing.classes
    if classes is None:
        return known
    if isinstance(classes, int):
        if not 1 <= classes <= len(known):
            raise UsageError(f"{classes} classes: {listing.where} has 1 to {len(known)}")
        return known[:classes]
    for name in classes:
        if name not in known:
            raise unknown(f"class of {listing.where}:", name, known)
    if not classes or len(set(classes)) < len(classes):
        raise UsageError("classes: name at least one, and each only once")
    return tuple(classes)


def _select(listing: Listing, classes: tuple[str, ...]) -> Listing:
    """Return the images of these classes, labelled by their order here; none may be empty."""
    position = {name: label for label, name in enumerate(classes)}
    renamed = np.array([position.get(name, -1) for name in listing.classes], dtype=np.int64)
    labels = renamed[listing.labels]
    chosen = replace(listing, labels=labels, classes=classes).only(labels >= 0)
    counts = np.bincount(chosen.labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{listing.where}: no images of {_some(empty)}; add some (JPEG, PNG, WebP, BMP, TIFF "
            "or GIF) or leave the class out"
        )
    return chosen


def _check_same_classes(train: Listing, test: Listing) -> None:
    for one, other in ((train, test), (test, train)):
        if lost := [name for name in one.classes if name not in other.classes]:
            raise DataError(
                f"{other.where} lacks the class {_some(lost)} of {one.where}; training and test "
                "images need the same classes"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def _first(listing: Listing, per_class: int | None) -> Listing:
    """Return the first images of each class, in file order."""
    if per_class is None:
        return listing
    keep = np.zeros(len(listing.labels), dtype=bool)
    for label in range(len(listing.classes)):
        keep[np.flatnonzero(listing.labels == label)[:per_class]] = True
    return listing.only(keep)


def _natural_size(listing: Listing) -> int:
    """Return the usual size nearest below the median shorter side, judged by a few images."""
    sides: list[int] = []
    for place in np.unique(np.linspace(0, len(listing.rows) - 1, _PROBES).astype(int)):
        try:
            sides.append(min(listing.read(int(place)).shape[:2]))
        except DataError:  # decoding them all will name every bad image
            continue
    if sides and max(sides) < 24:  # between 24 and 32 px, enlarging loses less than shrinking
        return 16
    return max((size for size in _SIZES if sides and size <= median(sides)), default=_SIZES[0])


def _open(
    listing: Listing, size: int, part: str, how: _Opening
) -> tuple[ImageSet, tuple[LeftOut, ...]]:
    """Return one part of a set, held or streamed, and what was left out of it."""
    if not how.stream:
        images, bad = _decode(listing, size, part)
        kept, left = leave_out(listing, bad, part, how.bad_images)
        if left:
            images = images[np.delete(np.arange(len(listing)), list(bad))]
        return DecodedImages(
            torch.from_numpy(images), torch.from_numpy(kept.labels), kept.classes
        ), left
    bad = {}
    if how.left_out is not None:
        known = set(how.left_out)
        keys = ((place, listing.key(place)) for place in range(len(listing)))
        bad = {place: "left out before" for place, key in keys if f"{part} {key}" in known}
    elif how.bad_images != "fail":
        bad = find_bad(listing, how.workers, part)
    kept, left = leave_out(listing, bad, part, how.bad_images)
    return StreamedImages(kept, size, how.workers), left


def _decode(listing: Listing, size: int, part: str) -> tuple[Pixels, dict[int, str]]:
    """Return the images as squares (n, 3, size, size), and why some could not be decoded.

    Pillow works in threads at full speed on all but tiny images.
    """
    images = np.zeros((len(listing), 3, size, size), dtype=np.uint8)

    def fill(place: int) -> str | None:
        try:
            pixels = square(listing.read(place), size)
        except DataError as error:
            return str(error)
        images[place] = pixels.transpose(2, 0, 1)  # (s, s, 3) -> (3, s, s)
        return None

    with ThreadPoolExecutor(_THREADS_PER_CORE * available_cores()) as pool:
        answers = pool.map(fill, range(len(images)))
        said = enumerate(track(answers, f"Reading {part} images", len(images)))
        return images, {place: reason for place, reason in said if reason}


def _leaked(train: ImageSet, test: ImageSet) -> int | None:
    """Return how many test images are training images too, pixel for pixel; None if streamed."""
    if not isinstance(train, DecodedImages) or not isinstance(test, DecodedImages):
        return None  # every file would have to be read: `reta scan` does
    known = {_digest(image) for image in train.images}
    return sum(_digest(image) in known for image in test.images)


def _digest(image: torch.Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def _keeps_meaning(name: str) -> bool:
    """Return whether mirrored images of a set, known by its name, still show their class."""
    word = name.lower()
    return "fashion" in word or not any(mark in word for mark in ("digit", "mnist", "svhn"))


def scan(
    data: str, workers: int | None = None, root: str | None = None, download: bool = True
) -> Report:
    """Look at every image of a set, of any kind `open_source` reads.

    Args:
        data: as in `open_source`.
        workers: processes; as many as there are processors by default.
        root: where sets known by name lie.
        download: whether such a set may be fetched.
    """
    _, parts = _find(data, root, download)
    listings = {"training": parts.train}
    if parts.test is not None:
        listings["test"] = parts.test
    return scan_parts(listings, workers)


def _fingerprint(*parts: ImageSet) -> str:
    return hashlib.sha256("".join(part.fingerprint() for part in parts).encode()).hexdigest()
