"""Images inside the page: base64, lossless while they are small."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

# Up to this side an image is shown with hard pixel edges.
_PIXELATED = 64
# Up to this side it is never made lossy.
_LOSSLESS = 32


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
    """Embed an image as PNG, or, where that is too big for the page, as a reduced JPEG.

    Args:
        image: RGB.
        allowance: the bytes this image may take; images of up to 32 px are kept whole anyway.
    """
    data = _encoded(image, "PNG")
    if len(data) <= allowance or max(image.size) <= _LOSSLESS:
        return _picture(data, "png", image)
    for side in (256, 192, 160, 128, 96):
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _encoded(small, "JPEG")
        if len(data) <= allowance:
            break
    return _picture(data, "jpeg", small, reduced=True)


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "PNG":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _picture(data: bytes, form: str, image: Image.Image, *, reduced: bool = False) -> Picture:
    source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    return Picture(source, image.width, image.height, reduced)
