"""Images inside the page: base64, lossless while they are small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

# Up to this side an image is shown with hard pixel edges.
_PIXELATED = 64
# Up to this side it is never made lossy.
_LOSSLESS = 32
_ROOM_FOR_LOSSLESS = 900
# A colour that is readable on a light and on a dark page.
_INK = (24, 146, 150)


@dataclass(frozen=True)
class Picture:
    """An image ready for an ``<img>``.

    Attributes:
        source: the data URI.
        width: in pixels, as embedded.
        height: in pixels, as embedded.
        reduced: whether the embedded copy is smaller or lossier than the file.
    """

    source: str
    width: int
    height: int
    reduced: bool = False

    @property
    def pixelated(self) -> bool:
        """Whether to show the pixels as squares."""
        return max(self.width, self.height) <= _PIXELATED


def embed(image: Image.Image, allowance: int) -> Picture:
    """Embed an image as PNG, or, where that is too big for the page, as a reduced WebP.

    Args:
        image: RGB.
        allowance: the bytes this image may take; images of up to 32 px are kept whole anyway,
            unless the page holds very many of them.
    """
    data = _encoded(image, "PNG")
    small = max(image.size) <= _LOSSLESS and allowance >= _ROOM_FOR_LOSSLESS
    if len(data) <= allowance or small:
        return _picture(data, "png", image)
    for side in (256, 192, 160, 128, 96, 64, 48, 32):
        copy = image.copy()
        copy.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _encoded(copy, "WEBP")
        if len(data) <= allowance:
            break
    return _picture(data, "webp", copy, reduced=True)


def heat_map(values: Sequence[Sequence[float]], top: float, *, flip: bool = False) -> Picture:
    """Embed a matrix as a picture of one colour, the more opaque the higher.

    Args:
        values: rows, from the top.
        top: the value that is fully opaque.
        flip: put the first row at the bottom, as axes do.
    """
    rows = list(reversed(values)) if flip else list(values)
    scale = 255 / top if top > 0 else 0.0
    opaque = bytes(min(255, max(0, round(scale * value))) for row in rows for value in row)
    alpha = Image.frombytes("L", (len(rows[0]), len(rows)), opaque)
    image = Image.new("RGB", alpha.size, _INK)
    image.putalpha(alpha)
    return _picture(_encoded(image, "PNG"), "png", image)


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "PNG":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=82, method=4)
    return buffer.getvalue()


def _picture(data: bytes, form: str, image: Image.Image, *, reduced: bool = False) -> Picture:
    source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    return Picture(source, image.width, image.height, reduced)
