"""A contact sheet of the distilled images, as one PNG."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from reta.errors import DataError
from reta.reporting.reading import read_run
from reta.storage import atomic_write

_GAP = 2
_SMALLEST_CELL = 64


def gallery_sheet(folder: Path, path: Path | None = None, per_class: int = 10) -> Path:
    """Write a contact sheet: a row per class, its first images side by side.

    Args:
        folder: a run folder.
        path: where to write; ``gallery.png`` in the folder by default.
        per_class: at most this many images of each class.

    Raises:
        DataError: if the folder is no finished run or holds no images.
    """
    run = read_run(folder)
    rows = [
        [image for _, image in run.images(label, per_class)] for label in range(len(run.classes))
    ]
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(f"{folder}: no images; run `reta distill` to finish the run")
    side = max(image.width for row in rows for image in row)
    # Small images are enlarged by a whole factor, so that every pixel stays a square.
    cell = side * max(1, -(-_SMALLEST_CELL // side))
    columns = max(map(len, rows))
    size = (columns * (cell + _GAP) - _GAP, len(rows) * (cell + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            tile = image.resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(tile, (x * (cell + _GAP), y * (cell + _GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    target = path or folder / "gallery.png"
    atomic_write(target, buffer.getvalue())
    return target
