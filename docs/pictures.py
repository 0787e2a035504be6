"""Write docs/images/digits.png from the demo's run folder: real images above distilled ones.

Run `make demo` first, then: python docs/pictures.py [runs/demo]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROWS = {"random": "real", "fadrm+": "FADRM+", "reta": "RETA"}
SCALE, SPACE, MARGIN = 4, 4, 72


def sheet(folder: Path) -> Image.Image:
    """Return one row per method with the first image of each class."""
    rows = {
        name: [Image.open(path) for path in sorted((folder / name).glob("images/*/000.png"))]
        for name in ROWS
    }
    side = rows["random"][0].width * SCALE
    step = side + SPACE
    size = (MARGIN + 10 * step, len(rows) * step)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for y, (name, images) in enumerate(rows.items()):
        draw.text((4, y * step + side // 2 - 6), ROWS[name], fill="black", font_size=15)
        for x, image in enumerate(images):
            large = image.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(large, (MARGIN + x * step, y * step))
    return picture


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    target = Path(__file__).parent / "images" / "digits.png"
    target.parent.mkdir(exist_ok=True)
    sheet(run).save(target, optimize=True)
