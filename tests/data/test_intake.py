"""Every kind of image, good and bad: the right pixels or a `DataError`, nothing in between."""

from __future__ import annotations

import logging
import re
import resource
import struct
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from reta.data.intake import read_image, square
from reta.errors import DataError
from reta.progress import warn_once

WIDTH, HEIGHT = 16, 12
RED, WHITE = (200, 30, 40), (255, 255, 255)
ORIENTATION = 274


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (WIDTH, HEIGHT), colour)


def png(width: int, height: int, rows: bytes = b"", depth: int = 8) -> bytes:
    """Return a grey PNG made by hand, whatever its header promises."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ramp() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a picture (h, w, 3) of which no two pixels are equal."""
    grid = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    return np.stack([grid, 255 - grid, grid // 2], axis=2)


def half_clear(mode: str) -> Image.Image:
    """Return red whose left half is transparent, in a mode with an alpha channel."""
    image = plain("RGBA", (*RED, 255))
    image.paste((*RED, 0), (0, 0, WIDTH // 2, HEIGHT))
    return image.convert(mode)


def palette_with_hole() -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([9, 9, 9, *RED])
    image.paste(0, (0, 0, WIDTH // 2, HEIGHT))
    return encoded(image, transparency=0)


def grey16(value: int, kind: str = "PNG", **options: Any) -> bytes:
    array = np.full((HEIGHT, WIDTH), value, dtype=np.uint16)
    return encoded(Image.fromarray(array), kind, **options)


def frames(kind: str) -> bytes:
    later = [plain("RGB", (0, 0, 255))]
    return encoded(plain("RGB", RED), kind, save_all=True, append_images=later)


LA_GREY = plain("RGB", RED).convert("L").getpixel((0, 0))
# name: (bytes, pixel at the left, pixel at the right, tolerance)
CORPUS: dict[str, tuple[bytes, Any, Any, int]] = {
    "rgb.png": (encoded(plain("RGB", RED)), RED, RED, 0),
    "rgb.jpg": (encoded(plain("RGB", RED), "JPEG", quality=95), RED, RED, 2),
    "progressive.jpg": (encoded(plain("RGB", RED), "JPEG", progressive=True), RED, RED, 3),
    "lossless.webp": (encoded(plain("RGB", RED), "WEBP", lossless=True), RED, RED, 0),
    "rgb.bmp": (encoded(plain("RGB", RED), "BMP"), RED, RED, 0),
    "rgb.tif": (encoded(plain("RGB", RED), "TIFF"), RED, RED, 0),
    "lzw.tif": (encoded(plain("RGB", RED), "TIFF", compression="tiff_lzw"), RED, RED, 0),
    "palette.gif": (encoded(plain("RGB", RED), "GIF"), RED, RED, 0),
    "grey.png": (encoded(plain("L", 77)), (77,) * 3, (77,) * 3, 0),
    "grey.jpg": (encoded(plain("L", 77), "JPEG"), (77,) * 3, (77,) * 3, 1),
    "bit.png": (encoded(plain("1", 1)), WHITE, WHITE, 0),
    "grey16_white.png": (grey16(65535), WHITE, WHITE, 0),
    "grey16_middle.png": (grey16(257 * 100), (100,) * 3, (100,) * 3, 0),
    "grey16_rounds.png": (grey16(257 * 100 + 129), (101,) * 3, (101,) * 3, 0),
    "grey16_dark.png": (grey16(300), (1,) * 3, (1,) * 3, 0),
    "grey16_hole.png": (grey16(300, transparency=300), WHITE, WHITE, 0),
    "grey16.tif": (grey16(257 * 9, "TIFF"), (9,) * 3, (9,) * 3, 0),
    "grey16_inverted.tif": (
        grey16(257 * 9, "TIFF", tiffinfo={262: 0}),
        (246,) * 3,
        (246,) * 3,
        0,
    ),
    "rgba.png": (encoded(half_clear("RGBA")), WHITE, RED, 0),
    "rgba.webp": (encoded(half_clear("RGBA"), "WEBP", lossless=True), WHITE, RED, 0),
    "rgba.tif": (encoded(half_clear("RGBA"), "TIFF"), WHITE, RED, 0),
    "half_alpha.png": (
        encoded(plain("RGBA", (0, 0, 0, 128))),
        (127,) * 3,
        (127,) * 3,
        0,
    ),
    "la.png": (encoded(half_clear("LA")), WHITE, (LA_GREY,) * 3, 0),
    "palette.png": (encoded(plain("RGB", RED).quantize(4)), RED, RED, 0),
    "palette_hole.png": (palette_with_hole(), WHITE, RED, 0),
    "colour_key.png": (encoded(plain("RGB", RED), transparency=RED), WHITE, WHITE, 0),
    "cmyk.jpg": (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0), (255, 0, 0), 3),
    "cmyk.tif": (encoded(plain("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0), (0, 0, 0), 0),
    "animated.gif": (frames("GIF"), RED, RED, 0),
    "animated.webp": (frames("WEBP"), RED, RED, 8),
    "animated.png": (frames("PNG"), RED, RED, 0),
    "pages.tif": (frames("TIFF"), RED, RED, 0),
    "photo.mpo": (frames("MPO"), RED, RED, 4),
}

GOOD = encoded(Image.fromarray(ramp()))
GOOD_JPEG = encoded(Image.fromarray(ramp()), "JPEG")
BAD: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "not a readable"),
    "text.jpg": (b"this is not an image", "not a readable"),
    "page.jpg": (b"<!doctype html><html></html>", "not a readable"),
    "start_only.jpg": (b"\xff\xd8", "not a readable|damaged"),
    "half.jpg": (GOOD_JPEG[: len(GOOD_JPEG) - 60], "damaged"),
    "half.png": (GOOD[: len(GOOD) // 2], "damaged"),
    "half.bmp": (encoded(plain("RGB", RED), "BMP")[:200], "damaged"),
    "half.webp": (encoded(Image.fromarray(ramp()), "WEBP")[:-20], "damaged|not a readable"),
    "flipped.png": (GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:], "damaged"),
    "int32.tif": (encoded(plain("I", 70000), "TIFF"), "32-bit integers"),
    "float.tif": (encoded(plain("F", 0.5), "TIFF"), "32-bit floats"),
    "dot.png": (encoded(Image.new("RGB", (1, 1))), "1x1 px"),
    "line.png": (encoded(Image.new("RGB", (1, 500))), "1x500 px"),
    "vector.eps": (encoded(plain("RGB", RED), "EPS"), "not a readable"),
    "exotic.ppm": (encoded(plain("RGB", RED), "PPM"), "not a readable"),
    "60_Mpx.png": (png(60_000, 1_000), "over 50 million"),
    "90_Mpx.png": (png(90_000, 1_000), "over 50 million"),
    "10_Gpx.png": (png(100_000, 100_000), "over 50 million"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_pixels(name: str, tmp_path: Path) -> None:
    content, left, right, tolerance = CORPUS[name]
    path = tmp_path / name
    path.write_bytes(content)
    for source in (content, path):
        pixels = read_image(source)
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        assert pixels.dtype == np.uint8
        for column, wanted in ((0, left), (-1, right)):
            off = np.abs(pixels[:, column].astype(int) - np.array(wanted))
            assert off.max() <= tolerance


@pytest.mark.parametrize("name", BAD)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    content, said = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(DataError, match=said) as caught:
            read_image(source, name=name if source is content else None)
        assert name in str(caught.value)
        assert any(fix in str(caught.value) for fix in ("convert", "remove", "replace", "save"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_orientation_of_the_camera(kind: str, orientation: int, upright: Any) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    best: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    content = encoded(Image.fromarray(ramp()), kind, exif=exif, **best.get(kind, {}))
    seen = read_image(content).astype(int)
    wanted = upright(ramp())
    assert seen.shape == wanted.shape
    assert np.abs(seen - wanted).max() <= (8 if kind == "JPEG" else 0)


def test_orientation_of_16_bits() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    grid = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    content = encoded(Image.fromarray(grid * 257), exif=exif)
    assert np.array_equal(read_image(content)[:, :, 0], np.rot90(grid, -1))


def test_first_frame_is_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "reta"):
        read_image(frames("GIF"), name="waving.gif")
        read_image(frames("MPO"), name="camera.jpg")
    assert [record.getMessage() for record in caplog.records] == [
        "waving.gif: has several frames; only the first is used"
    ]


def test_huge_header_costs_nothing() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(DataError, match="over 50 million"):
        read_image(png(100_000, 100_000))
    assert time.process_time() - start < 1  # decoded it would be minutes, and 30 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_huge_header_with_plain_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="over 50 million"):
            read_image(png(90_000, 1_000))


def test_pillow_is_left_as_it_was() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    read_image(GOOD)
    with pytest.raises(DataError):
        read_image(png(100_000, 100_000))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_half_images_are_refused_even_if_pillow_allows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES = False"):
        read_image(GOOD, name="a.png")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        read_image(tmp_path)


def test_shortest_side_is_a_choice() -> None:
    content = encoded(Image.new("RGB", (8, 7), RED))
    assert read_image(content, min_side=7).shape == (7, 8, 3)
    with pytest.raises(DataError, match="8x7 px"):
        read_image(content)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    original=st.sampled_from(
        [GOOD, GOOD_JPEG, CORPUS["rgba.png"][0], CORPUS["progressive.jpg"][0]]
    ),
    hits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 2**16),
)
def test_any_damage_gives_pixels_or_a_data_error(
    original: bytes, hits: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(original)
    for place, value in hits:
        content[place % len(content)] = value
    if cut % 4 == 0:
        del content[cut % len(content) :]
    message, pixels = "fuzzed: ", None
    try:
        pixels = read_image(bytes(content), name="fuzzed")
    except DataError as error:
        message = str(error)
    assert message.startswith("fuzzed: ")
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.shape[2] == 3)


def test_square_returns_a_fitting_image_as_it_is() -> None:
    image = ramp()[:, :HEIGHT]
    assert square(image, HEIGHT) is image


def test_square_crops_the_centre_exactly() -> None:
    assert np.array_equal(square(ramp(), HEIGHT), ramp()[:, 2:-2])
    assert np.array_equal(square(np.rot90(ramp()), HEIGHT), np.rot90(ramp())[2:-2])


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (8, 5000), (9, 8)])
def test_square_sizes(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), RED, dtype=np.uint8)
    small = square(image, 20)
    assert small.shape == (20, 20, 3)
    assert (small == RED).all()


def test_square_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = square(stripes, 16)[2:-2, 2:-2].astype(int)
    assert np.abs(inner - 127).max() <= 8
