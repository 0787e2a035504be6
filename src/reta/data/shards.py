"""WebDataset shards: tar files in which an image and its label share a name.

Nothing is ever unpacked to the disk: members are read where they lie in the archive. Links,
devices and names that point elsewhere are refused all the same, since an archive that has them was
not made by a tool for data sets.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from reta.data.intake import SUFFIXES
from reta.data.listing import ByteStore, Integers, Listing, Parts, Texts
from reta.data.tables import TEST_NAMES, named_labels
from reta.errors import DataError

_LABEL_ENDINGS = (".cls", ".cls.txt", ".json")
_MOST_LABEL_BYTES = 1 << 20
_MOST_IMAGE_BYTES = 1 << 28
_CLASS_FILES = ("classes.json", "classnames.txt", "classes.txt")


def tar_files(folder: Path, split: str) -> list[Path]:
    """Return the shards of one split: ``train.tar`` or ``train-000000.tar`` … ."""
    return sorted([*folder.glob(f"{split}.tar"), *folder.glob(f"{split}[-_]*.tar")])


def read_shards(path: Path) -> Parts:
    """Return one tar shard, or a folder of them by split."""
    if path.is_file():
        return Parts(_shards([path], path.parent))
    every = sorted(path.glob("*.tar"))
    for split in TEST_NAMES:
        if test := tar_files(path, split):
            train = tar_files(path, "train") or [file for file in every if file not in test]
            if not train:
                raise DataError(f"{path}: no training shards; name them train-000000.tar …")
            return Parts(_shards(train, path), _shards(test, path), f"the shards {split}")
    return Parts(_shards(tar_files(path, "train") or every, path))


@dataclass
class _Found:
    """The members of shards, as they are met."""

    files: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)


def _shards(files: Sequence[Path], folder: Path) -> Listing:
    """Return the images of some shards, in the order they lie there."""
    found = _Found()
    for index, file in enumerate(files):
        _collect(file, index, found)
    where = ", ".join(str(file) for file in files[:3]) + (" …" if len(files) > 3 else "")
    if not found.keys:
        raise DataError(
            f"{where}: no image with a label; a sample is NAME.jpg with NAME.cls or NAME.json"
        )
    classes, labels = named_labels(where, found.labels)
    names = _class_names(folder)
    if names and all(isinstance(label, int) for label in found.labels):
        classes = names
    store = TarImages(files, found)
    keys = Texts(found.keys)
    images = ByteStore(where, store.fetch, keys, store.sizes)
    rows = np.arange(len(keys))
    return Listing(where, classes, labels, rows, images, tuple(found.ignored))


def _collect(file: Path, index: int, found: _Found) -> None:
    """Add the samples of one shard: members next to each other that share a name."""
    seen: dict[str, tarfile.TarInfo | Any] = {}
    current = ""
    try:
        with tarfile.open(file, "r:") as archive:  # uncompressed, so that members can be sought
            for member in _members(archive, file):
                key, ending = _split(member.name)
                if key != current:
                    _add(seen, current, file, index, found)
                    seen, current = {}, key
                if ending in _LABEL_ENDINGS:
                    seen["label"] = _label(archive, member, ending, file)
                elif "." + ending.rpartition(".")[2] in SUFFIXES:
                    seen["image"] = member
                else:
                    found.ignored.append((f"{file} {member.name}", "neither image nor label"))
            _add(seen, current, file, index, found)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{file}: not a readable .tar ({error}); shards must be whole and not compressed"
        ) from error


def _members(archive: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive; refuse whatever could lead out of it."""
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # else the archive remembers every member of a huge shard
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise DataError(f"{file}: member {member.name!r} points outside; do not trust the file")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise DataError(
                f"{file}: member {member.name!r} is a link or a device; do not trust the file"
            )
        if member.size > _MOST_IMAGE_BYTES:
            raise DataError(f"{file}: member {member.name!r} has {member.size} bytes; remove it")
        yield member


def _split(name: str) -> tuple[str, str]:
    """Return the name of a sample and the ending: all from the first dot of the file name."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, file: Path) -> Any:
    if member.size > _MOST_LABEL_BYTES:
        raise DataError(f"{file}: label {member.name!r} has {member.size} bytes; remove it")
    opened = archive.extractfile(member)
    try:
        text = opened.read().decode("utf-8").strip() if opened else ""
        value = json.loads(text) if ending == ".json" else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: {member.name!r} is no readable label ({error})") from error
    if isinstance(value, dict):
        value = next((value[name] for name in ("label", "cls", "class") if name in value), None)
    if isinstance(value, str) and value.lstrip("-").isdigit():
        value = int(value)
    if not isinstance(value, int | str) or value == "":
        raise DataError(f"{file}: {member.name!r} holds no label; give a number or a class name")
    return value


def _add(seen: dict[str, Any], key: str, file: Path, index: int, found: _Found) -> None:
    if "image" in seen and "label" in seen:
        member = seen["image"]
        found.files.append(index)
        found.offsets.append(member.offset_data)
        found.sizes.append(member.size)
        found.keys.append(key)
        found.labels.append(seen["label"])
    elif seen:
        lacking = "no label" if "image" in seen else "no image"
        found.ignored.append((f"{file} {key}", f"a sample with {lacking}"))


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the class names in a file beside the shards, if there is one."""
    for name in _CLASS_FILES:
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            names = json.loads(text) if path.suffix == ".json" else text.splitlines()
            return tuple(str(name).strip() for name in names if str(name).strip())
    return ()


class TarImages:
    """The images of uncompressed tar files, each read from its place."""

    def __init__(self, files: Sequence[Path], found: _Found) -> None:
        self.files = [str(file) for file in files]
        self.file_of = np.array(found.files, dtype=np.int32)
        self.offsets = np.array(found.offsets, dtype=np.int64)
        self.sizes: Integers = np.array(found.sizes, dtype=np.int64)

    def fetch(self, row: int) -> bytes:
        """Return the bytes of an image."""
        name, size = self.files[self.file_of[row]], int(self.sizes[row])
        try:
            with Path(name).open("rb") as file:
                file.seek(int(self.offsets[row]))
                content = file.read(size)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error
        if len(content) < size:
            raise DataError(f"{name}: shorter than when it was listed; copy it again")
        return content
