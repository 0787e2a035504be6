"""Numbers from papers, for the same data set, size, images per class and student only."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml


@lru_cache
def _tables() -> list[dict[str, Any]]:
    text = (resources.files("reta.reporting") / "published.yaml").read_text(encoding="utf-8")
    tables: list[dict[str, Any]] = yaml.safe_load(text)
    return tables


def published(
    method: str,
    measure: str,
    *,
    data: str,
    classes: int,
    image_size: int,
    ipc: int,
    student: str,
) -> dict[str, Any] | None:
    """Return a published number ``{"value", "source"}`` as a fraction, if the setting is the same.

    Args:
        method: name of the method.
        measure: ``accuracy`` or ``corrupted``.
        data: name of the data set; hyphens and case do not matter.
        classes: number of classes.
        image_size: side in pixels.
        ipc: images per class.
        student: architecture.
    """
    for table in _tables():
        row = table["students"].get(student, {}).get(method)
        if row is None or table["measure"] != measure:
            continue
        columns = [
            (_plain(setting["data"]), setting["classes"], setting["image_size"], own)
            for setting in table["settings"]
            for own in setting["ipc"]
        ]
        wanted = (_plain(data), classes, image_size, ipc)
        if wanted in columns:
            return {"value": row[columns.index(wanted)] / 100, "source": table["source"]}
    return None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
