"""Sets of the Hugging Face hub, and folders that `datasets` saved: ``hf:owner/name``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reta.data.listing import ByteStore, Listing, Parts
from reta.data.tables import TEST_NAMES, named_labels
from reta.errors import DataError, UsageError


def read_hub(name: str) -> Parts:
    """Return a data set of the hub, or one that ``save_to_disk`` wrote, by ``datasets``.

    Args:
        name: ``owner/name``, ``owner/name:configuration``, or the path of a saved folder.

    Raises:
        UsageError: if `datasets` is not installed.
        DataError: if there is no such set, or it has no images with labels.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"hf:{name} needs datasets; run: pip install 'reta[hf]'") from error
    where = f"hf:{name}"
    try:
        if Path(name).expanduser().is_dir():
            found = datasets.load_from_disk(str(Path(name).expanduser()))
        else:
            owner, _, configuration = name.partition(":")
            found = datasets.load_dataset(owner, configuration or None)
    except Exception as error:  # of the network, the hub and Arrow, each its own
        raise DataError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error}); check the name and the "
            "network, or give a folder that datasets' save_to_disk wrote"
        ) from error
    splits = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    if "train" not in splits:
        raise DataError(f"{where}: has the splits {', '.join(splits)}; one must be called train")
    test = next((split for split in TEST_NAMES if split in splits), None)
    train = _listing(f"{where} train", splits["train"])
    if test is None:
        return Parts(train)
    return Parts(train, _listing(f"{where} {test}", splits[test]), f"the split {test}")


def _listing(where: str, rows: Any) -> Listing:
    """Return the rows of one split that has a column of images and one of labels."""
    import datasets

    kinds = rows.features
    image = next((key for key, kind in kinds.items() if isinstance(kind, datasets.Image)), None)
    labelled = [key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [key for key in ("label", "labels", "fine_label") if key in kinds]
    if image is None or not (labelled or plain):
        raise DataError(
            f"{where}: has the columns {', '.join(kinds)}; one of images and one of class labels "
            "are needed"
        )
    # Of several, such as CIFAR-100's coarse and fine labels, the one with most classes.
    label = max(labelled, key=lambda key: kinds[key].num_classes) if labelled else plain[0]
    values = rows.with_format("numpy")[label][:] if labelled else rows[label][:]
    if labelled:
        classes, labels = tuple(kinds[label].names), np.asarray(values, dtype=np.int64)
    else:
        classes, labels = named_labels(where, list(values))
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    store = ByteStore(where, HubImages(where, encoded, image).fetch)
    return Listing(where, classes, labels, np.arange(len(labels)), store)


class HubImages:
    """The encoded images of one split; `datasets` maps them from the disk."""

    def __init__(self, where: str, rows: Any, column: str) -> None:
        self.where, self.rows, self.column = where, rows, column

    def fetch(self, row: int) -> bytes:
        """Return the bytes of the image in a row."""
        found = self.rows[row][self.column]
        if found and found["bytes"] is not None:
            content: bytes = found["bytes"]
            return content
        if found and found["path"] and Path(found["path"]).is_file():
            return Path(found["path"]).read_bytes()
        raise DataError(f"{self.where} row {row}: no image bytes; embed the images in the set")
