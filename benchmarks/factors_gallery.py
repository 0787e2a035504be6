"""Draw what the rows of the factor study look like: the same classes and starts, side by side.

    python benchmarks/factors_gallery.py runs/factors/cifar100-ipc5

Each line is a row of the study, each column a class; all lines began with the same real images
and saw the same draws, so that what differs is what the row changes. The picture goes to
docs/images/factors-gallery.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from reta.reporting.reading import read_run

TARGET = Path(__file__).parents[1] / "docs" / "images" / "factors-gallery.png"
ROWS = (
    "fadrm",
    "fadrm+",
    "reta-pta",
    "reta-drc",
    "reta-paper",
    "reta-drc connection.margin=0.1",
    "reta-drc connection.trade_off=1",
    "reta-drc connection.embedding=pixels connection.fresh=true",
)
CELL, GAP, MARGIN = 96, 4, 250


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="a setting's run folder")
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="index of the distillation seed")
    asked = parser.parse_args()
    runs = {row: asked.folder / f"{row.replace(' ', '-')}-{asked.seed}" for row in asked.rows}
    runs = {row: read_run(folder) for row, folder in runs.items() if folder.is_dir()}
    if not runs:
        parser.error(f"{asked.folder}: no run of {', '.join(asked.rows)}")
    names = next(iter(runs.values())).classes[: asked.classes]
    step = CELL + GAP
    sheet = Image.new("RGB", (MARGIN + step * len(names), 24 + step * len(runs)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for x, name in enumerate(names):
        pen.text((MARGIN + step * x, 4), name, "black", font)
    for y, (row, run) in enumerate(runs.items()):
        top = 24 + step * y
        for line, word in enumerate(row.split()):
            pen.text((4, top + 18 * line), word, "black", font)
        for x in range(len(names)):
            _, image = next(iter(run.images(x, 1)))
            tile = image.convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(tile, (MARGIN + step * x, top))
    TARGET.parent.mkdir(exist_ok=True)
    sheet.save(TARGET, optimize=True)
    print(f"{TARGET.name}: {len(runs)} rows, {len(names)} classes")


if __name__ == "__main__":
    main()
