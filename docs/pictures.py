"""Write the pictures of the documents from the demo's run folder.

docs/images/digits.png: real images above distilled ones. docs/images/report.png: the top of a
report, if a Chromium is installed. Run `make demo` first, then: python docs/pictures.py [runs/demo]
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
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


def screenshot(page: Path, browser: str) -> Image.Image:
    """Return the top of a page as a browser shows it, in few enough colours to be small."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={folder}/profile", "--window-size=1200,1500"]
        command = [browser, *options, f"--screenshot={target}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        picture = Image.open(io.BytesIO(target.read_bytes())).convert("RGB")
    return picture.resize((900, 1125), Image.Resampling.LANCZOS).quantize(256, kmeans=1)


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    target = Path(__file__).parent / "images" / "digits.png"
    target.parent.mkdir(exist_ok=True)
    sheet(run).save(target, optimize=True)
    if browser := shutil.which("chromium") or shutil.which("google-chrome"):
        screenshot(run / "reta" / "report.html", browser).save(
            target.with_name("report.png"), optimize=True
        )
