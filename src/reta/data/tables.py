"""Tables of images: Parquet with the images inside, CSV and Parquet with their paths."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reta.data.listing import (
    ByteStore,
    FileStore,
    Integers,
    Listing,
    Parts,
    checked_labels,
    numbered,
)
from reta.errors import DataError, UsageError

TEST_NAMES = ("test", "val", "validation")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image")
_LABELS = ("label", "class", "category", "target")

_GROUPS_KEPT = 4  # row groups of a Parquet file held in memory, by each process
_one_at_a_time = threading.Lock()


def read_parquet(path: Path) -> Parts:
    """Return a Parquet file, or a folder of them by split, in the Hugging Face layout."""
    if path.is_file():
        return _parquet_parts([path])
    train = _parquet_parts(parquet_files(path, "train"))
    for split in TEST_NAMES:
        if files := parquet_files(path, split):
            return Parts(train.train, _parquet_parts(files).train, f"the split {split}")
    return train


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return the Parquet files of one split: ``train.parquet`` or ``train-00000-of-00002…``."""
    return sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])


def read_csv(path: Path) -> Parts:
    """Return a CSV file with a column of paths, one of labels and, optionally, ``split``.

    Paths count from the folder of the file. Labels are class names, or integers from 0.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error}); write it again") from error
    if not rows:
        raise DataError(f"{path}: no rows; write a header line such as path,label and a row each")
    names = [name for name in rows[0] if name]
    columns = {name: [row[name] for row in rows] for name in names}
    for name, values in columns.items():
        if None in values:
            line = values.index(None) + 2
            raise DataError(f"{path} line {line}: no {name}; give every row the same columns")
    return _from_paths(path, columns)


def _column(where: Path, columns: dict[str, Any], known: Sequence[str]) -> Any:
    by_name = {name.strip().lower(): values for name, values in columns.items()}
    for name in known:
        if name in by_name:
            return by_name[name]
    raise DataError(
        f"{where}: has the columns {', '.join(columns) or 'nothing'}; one of "
        f"{', '.join(known)} is needed"
    )


def _from_paths(where: Path, columns: dict[str, Any]) -> Parts:
    """Return the parts of a table of paths and labels, by its column ``split`` if it has one."""
    paths = [str(path) for path in _column(where, columns, _PATHS)]
    classes, labels = named_labels(str(where), _column(where, columns, _LABELS))
    store = FileStore(where.parent, paths, paths)
    every = Listing(str(where), classes, labels, np.arange(len(paths)), store)
    splits = {name.strip().lower(): values for name, values in columns.items()}.get("split")
    if splits is None:
        return Parts(every)
    words = np.array([str(word).strip().lower() for word in splits])
    if strange := set(words) - {"train", *TEST_NAMES}:
        raise DataError(
            f"{where}: split {str(min(strange))!r}; use train and one of {', '.join(TEST_NAMES)}"
        )
    test = next((name for name in TEST_NAMES if (words == name).any()), None)
    train = every.only(words == "train")
    return Parts(train, every.only(words == test), f"the split {test}") if test else Parts(train)


def named_labels(where: str, values: Sequence[Any]) -> tuple[tuple[str, ...], Integers]:
    """Return class names and labels from integers counted from 0, or from names of any kind."""
    try:
        labels = checked_labels(where, np.array([int(value) for value in values]), len(values))
        return numbered(labels), labels
    except (TypeError, ValueError):
        words = [str(value).strip() for value in values]
    if "" in words or "None" in words:
        raise DataError(f"{where}: row {words.index('') if '' in words else 0} has no label")
    classes = tuple(sorted(set(words)))
    place = {name: label for label, name in enumerate(classes)}
    return classes, np.array([place[word] for word in words], dtype=np.int64)


def _arrow(where: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(
            f"{where}: reading Parquet needs pyarrow; run: pip install 'reta[parquet]'"
        ) from error
    return pq


def _parquet_parts(files: list[Path]) -> Parts:
    """Return the rows of Parquet files with images or paths, and labels."""
    pq = _arrow(files[0])
    import pyarrow as pa

    where = ", ".join(str(file) for file in files)
    try:
        schema = pq.read_schema(str(files[0]))
        inside = "image" in schema.names and pa.types.is_struct(schema.field("image").type)
        if not inside and set(_PATHS) & set(schema.names):
            table = pa.concat_tables(
                pq.read_table(str(file), columns=_described(schema)) for file in files
            )
            return _from_paths(files[0], table.to_pydict())
        label = next(name for name in _LABELS if name in schema.names)
        labels = np.concatenate(
            [pq.read_table(str(file), columns=[label])[label].to_numpy() for file in files]
        )
        if not inside or "bytes" not in [field.name for field in schema.field("image").type]:
            raise KeyError("image")
        images = ParquetImages(files)
    except (KeyError, OSError, StopIteration, pa.ArrowException) as error:
        raise DataError(
            f"{where}: not a Parquet file with the columns image (bytes, path) and label, or path "
            f"and label ({error}); rename the columns or write the file again"
        ) from error
    clean = checked_labels(where, labels, images.count)
    classes = _huggingface_names((schema.metadata or {}).get(b"huggingface")) or numbered(clean)
    store = ByteStore(where, images.fetch, lengths=images.lengths)
    return Parts(Listing(where, classes, clean, np.arange(images.count), store))


def _described(schema: Any) -> list[str]:
    known = {*_PATHS, *_LABELS, "split"}
    return [name for name in schema.names if name.strip().lower() in known]


class ParquetImages:
    """The images of Parquet files, a row group at a time, so that no file is held whole."""

    def __init__(self, files: Sequence[Path]) -> None:
        pq = _arrow(files[0])
        self.files = [str(file) for file in files]
        self.groups: list[tuple[int, int]] = []  # (file, row group in it)
        counts, sizes = [], []
        for index, file in enumerate(self.files):
            facts = pq.read_metadata(file)
            for group in range(facts.num_row_groups):
                self.groups.append((index, group))
                counts.append(facts.row_group(group).num_rows)
                sizes.append(facts.row_group(group).total_byte_size)
        self.starts = np.cumsum([0, *counts])
        self.lengths = np.repeat(np.array(sizes, dtype=np.int64), counts)

    @property
    def count(self) -> int:
        """How many images there are."""
        return int(self.starts[-1])

    def fetch(self, row: int) -> bytes:
        """Return the bytes of the image in a row."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        file, group = self.groups[index]
        with _one_at_a_time:  # several threads at once would each read the same group
            column = _row_group(self.files[file], group, os.getpid())
        content: bytes | None = column[row - int(self.starts[index])].as_py()
        if content is None:
            raise DataError(
                f"{self.files[file]} row {row}: no image bytes; embed the images in the file"
            )
        return content


@lru_cache(maxsize=_GROUPS_KEPT)
def _row_group(file: str, group: int, process: int) -> Any:
    """Return the image bytes of one row group; each process opens the file for itself."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, memory_map=True) as opened:
        table = opened.read_row_group(group, columns=["image"], use_threads=False)
    return pc.struct_field(table["image"], "bytes")


def _huggingface_names(metadata: bytes | None) -> tuple[str, ...]:
    """Return the class names that `datasets` leaves in a Parquet schema, or nothing."""
    try:
        return tuple(json.loads(metadata or b"")["info"]["features"]["label"]["names"])
    except (ValueError, KeyError, TypeError):
        return ()
