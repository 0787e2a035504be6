"""The one way an encoded image gets in: checked, upright, opaque, 8-bit RGB, or a `DataError`.

The usual ``Image.open(path).convert("RGB")`` turns 16-bit grey white and floats black, ignores
the camera's orientation, reveals colours hidden under transparent pixels and says none of it.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from reta.errors import DataError
from reta.progress import warn_once

Pixels = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Lower-case endings of the files that are taken for images."""

MAX_PIXELS = 50_000_000
MIN_SIDE = 8

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # the TIFF tag and value of greys that count from white


def read_image(
    source: Path | bytes,
    *,
    name: str | None = None,
    min_side: int = MIN_SIDE,
    notes: list[str] | None = None,
) -> Pixels:
    """Return an image file as uint8 RGB pixels (h, w, 3), or refuse it.

    Orientation from EXIF is applied; 16-bit grey is scaled to 8 bits; transparency is composited
    on white; grey, palette and CMYK become RGB (CMYK without its colour profile); of an animation
    the first frame is used, with a warning. 32-bit integers and floats are refused, since
    nothing in the file says which value is white. Damage inside a JPEG's entropy-coded data
    cannot be seen by any decoder: only a recorded hash of the file shows it.

    Args:
        source: a file, or the bytes of one.
        name: what to call the image in messages; the path if there is one.
        min_side: the shortest side accepted, in pixels.
        notes: where to say what one should know of the image; by default it is logged.

    Raises:
        DataError: if the image cannot be used; the message has its name, the reason and a fix.
    """
    name = name or ("image in memory" if isinstance(source, bytes) else str(source))
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            f"{name}: a library in this process made Pillow accept half images; "
            "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False"
        )
    try:
        file = BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_FORMATS) as image:
            _check_header(image, name, min_side, notes)
            return _to_rgb(image, name)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: not a readable {', '.join(_FORMATS)} image; convert or remove it"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise DataError(f"{name}: damaged ({error}); replace or remove it") from error


def square(image: Pixels, size: int) -> Pixels:
    """Return the central square of an image (h, w, 3), resized to (size, size, 3).

    Bicubic, antialiased when shrinking; an image of that size already comes back as it is.
    Cropping comes first, so that a long thin image is never enlarged as a whole.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side]
    if side == size:
        return crop
    resized = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _check_header(image: Image.Image, name: str, min_side: int, notes: list[str] | None) -> None:
    """Refuse by size before a pixel is decoded; mention the frames that are left out."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    if min(image.size) < min_side:
        raise DataError(
            f"{name}: {image.width}x{image.height} px, and sides under {min_side} px carry too "
            "little to learn from; remove it"
        )
    # an MPO is a photograph followed by the camera's previews
    if image.format != "MPO" and getattr(image, "is_animated", False):
        note = f"{name}: has several frames; only the first is used"
        warn_once(note) if notes is None else notes.append(note)


def _too_large(name: str) -> DataError:
    return DataError(
        f"{name}: over {MAX_PIXELS // 10**6} million pixels, more than any photograph needs "
        "and what a decompression bomb looks like; shrink or remove it"
    )


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    """Return the pixels (h, w, 3) of an open image of any mode, opaque and in 8 bits."""
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise DataError(
            f"{name}: 32-bit {kind}, and nothing in the file says which value is white; "
            "save it with 8 or 16 bits per channel"
        )
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.repeat(_grey_from_16_bits(image, inverted)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _grey_from_16_bits(image: Image.Image, inverted: bool) -> Pixels:
    """Return 16-bit grey as 8 bits (h, w): v / 257, rounded, since 65535 = 257 * 255."""
    values = np.asarray(image).astype(np.uint32)
    if inverted:  # Pillow does it for 8 bits only
        values = 65535 - values
    hidden = image.info.get("transparency")
    if hidden is not None:
        values[values == hidden] = 65535
    return ((values + 128) // 257).astype(np.uint8)
