"""The 15 common corruptions of ImageNet-C, from their definitions (Hendrycks and Dietterich, 2019).

Each takes an image ``(s, s, 3)`` float64 in [0, 1], the parameters of a severity and a generator,
and returns an image of the same kind. What the published files do is followed, oddities included,
where it is known; differences are said in docs/evaluation.md.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from reta.evaluation.severities import TABLES
from reta.runtime import random_generator

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Corruption = Callable[[Array, Sequence[float], np.random.Generator], Array]

_GREY = np.array([0.299, 0.587, 0.114])
_OFFICIAL_ELASTIC_SIDE = 244  # of the 224 px files: their typing error


def corrupt(
    image: Bytes,
    name: str,
    severity: int,
    index: int,
    table: int,
    textures: Sequence[Bytes] = (),
) -> Bytes:
    """Return a corrupted image; the same for the same name, severity and index.

    Args:
        image: ``(s, s, 3)`` uint8.
        name: of `reta.evaluation.severities.NAMES`.
        severity: 1 to 5.
        index: of the image in its set, which keys the random draws.
        table: size whose official parameters are used: 32, 64 or 224.
        textures: ``(h, w, 3)`` uint8 photographs of frost; a procedural texture where empty.
    """
    rng = random_generator(0, "corruption", name, severity, index)
    parameters = TABLES[table][name][severity - 1]
    pixels = image.astype(np.float64) / 255
    if name == "frost":
        changed = frost(pixels, parameters, rng, [_frost_photo(t, table) for t in textures])
    else:
        changed = CORRUPTIONS[name](pixels, parameters, rng)
    scaled = np.clip(changed, 0, 1) * 255
    # The published files are cut off, not rounded; 1e-9 keeps an unchanged byte as it is.
    return (scaled + 1e-9).astype(np.uint8)


def gaussian_noise(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Add normal noise of standard deviation σ."""
    (sigma,) = parameters
    return image + rng.normal(scale=sigma, size=image.shape)


def shot_noise(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Draw each value from a Poisson law of mean c·x, over c."""
    (scale,) = parameters
    return np.asarray(rng.poisson(image * scale) / scale)


def impulse_noise(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Set a share of all values to 0 or 1, with equal chances."""
    (amount,) = parameters
    struck = rng.random(image.shape) < amount
    return np.where(struck, (rng.random(image.shape) < 0.5).astype(np.float64), image)


def disk_kernel(radius: float, blur: float) -> Array:
    """Return a disk smoothed by a small Gaussian window, as the authors make it.

    It sums to 1, but for the radii 8 and 10, whose disks touch the frame: 1.01.
    """
    reach = 8 if radius <= 8 else int(radius)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line[None] ** 2 <= radius**2).astype(np.float64)
    half = 1 if radius <= 8 else 2
    window = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * blur**2))
    window /= window.sum()
    smooth = ndimage.convolve1d(disk / disk.sum(), window, axis=0, mode="mirror")
    return np.asarray(ndimage.convolve1d(smooth, window, axis=1, mode="mirror"))


def defocus_blur(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Convolve with a disk."""
    kernel = disk_kernel(*parameters)
    return np.asarray(ndimage.convolve(image, kernel[:, :, None], mode="mirror"))


def _smooth(image: Array, sigma: float) -> Array:
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest"))


def glass_blur(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Smooth, let each pixel take the value of one nearby, several times over, smooth again.

    The authors' code means to swap two pixels, but assigns one row view after the other, which
    copies; their files, and so this, hold the copies.
    """
    sigma, reach, rounds = parameters[0], int(parameters[1]), int(parameters[2])
    side = image.shape[0]
    pixels = np.floor(_smooth(image, sigma) * 255) / 255
    source = np.arange(side * side).reshape(side, side)
    places = range(side - reach, reach, -1)
    for _ in range(rounds):
        shifts = rng.integers(-reach, reach, (len(places), len(places), 2))
        for row, line in zip(places, shifts.tolist(), strict=True):
            for column, (right, down) in zip(places, line, strict=True):
                source[row, column] = source[row + down, column + right]
    return _smooth(pixels.reshape(-1, 3)[source], sigma)


def motion(image: Array, radius: float, sigma: float, angle: float) -> Array:
    """Return ImageMagick's motion blur: a one-sided Gaussian along a line, edge pixels repeated.

    Args:
        image: ``(s, s)`` or ``(s, s, channels)``.
        radius: the line has 2·radius + 1 pixels.
        sigma: of the Gaussian in pixels.
        angle: of the line in degrees.
    """
    steps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    turn = math.radians(angle)
    down = np.ceil(steps * math.sin(turn) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(turn) - 0.5).astype(int)
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    total = np.zeros_like(image)
    for weight, dy, dx in zip(weights / weights.sum(), down, right, strict=True):
        taken = image[(rows + dy).clip(0, rows[-1])]
        total += weight * taken[:, (columns + dx).clip(0, columns[-1])]
    return total


def motion_blur(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Blur along a line of −45° to 45°."""
    radius, sigma = parameters
    return motion(image, radius, sigma, rng.uniform(-45, 45))


def zoomed(image: Array, factor: float) -> Array:
    """Return the middle of an image ``(s, s, channels)``, enlarged bilinearly to its size."""
    side = image.shape[0]
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    middle = image[top : top + kept, top : top + kept]
    large = ndimage.zoom(middle, (factor, factor, 1), order=1)
    cut = (large.shape[0] - side) // 2
    return np.asarray(large[cut : cut + side, cut : cut + side])


def zoom_blur(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Average the image and its enlargements by factors from 1 to below a largest one."""
    end, step = parameters
    views = [zoomed(image, factor) for factor in np.arange(1, end, step)]
    return np.asarray((image + sum(views)) / (len(views) + 1))


def snow(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Whiten the image and lay flakes over it: thresholded noise, enlarged and blown aslant."""
    mean, spread, zoom, threshold, radius, sigma, mix = parameters
    layer = zoomed(rng.normal(mean, spread, (*image.shape[:2], 1)), zoom)[:, :, 0]
    layer[layer < threshold] = 0
    flakes = np.round(np.clip(layer, 0, 1) * 255) / 255
    blown = motion(flakes, radius, sigma, rng.uniform(-135, -45))[:, :, None]
    grey = (image @ _GREY)[:, :, None]
    white = mix * image + (1 - mix) * np.maximum(image, grey * 1.5 + 0.5)
    return np.asarray(white + blown + np.rot90(blown, 2))


def plasma(side: int, decay: float, rng: np.random.Generator) -> Array:
    """Return a cloud ``(side, side)`` from 0 to 1 by midpoint displacement on a torus.

    Squares and diamonds in turn get the mean of four neighbours plus w·U(−w, w), and w, at first
    100, is divided by ``decay`` whenever the grid is halved.

    Args:
        side: a power of two.
        decay: above 1; the larger, the smoother.
        rng: of the displacements.
    """
    field = np.zeros((side, side))
    step, wobble = side, 100.0

    def displaced(total: Array) -> Array:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = displaced(pairs + np.roll(pairs, -1, axis=1))
        centres = field[half::step, half::step]
        field[::step, half::step] = displaced(
            centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        )
        field[half::step, ::step] = displaced(
            centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        )
        step, wobble = half, wobble / decay
    field -= field.min()
    return np.asarray(field / field.max())


def _cloud(side: int, decay: float, rng: np.random.Generator) -> Array:
    return plasma(1 << (side - 1).bit_length(), decay, rng)[:side, :side]


def fog(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Add a cloud and scale back to the old maximum."""
    amount, decay = parameters
    top = image.max()
    clouded = image + amount * _cloud(image.shape[0], decay, rng)[:, :, None]
    return np.asarray(clouded * top / (top + amount))


def frost(
    image: Array,
    parameters: Sequence[float],
    rng: np.random.Generator,
    photos: Sequence[Array] = (),
) -> Array:
    """Mix in a random piece of a photograph of frost; without one, ridges of a cloud stand in."""
    keep, weight = parameters
    side = image.shape[0]
    if not photos:
        ridges = 1 - np.abs(2 * _cloud(side, 1.7, rng) - 1)
        texture = ridges[:, :, None] * np.array([0.85, 0.95, 1.0])  # bluish white
        return np.asarray(keep * image + weight * texture)
    photo = photos[int(rng.integers(len(photos)))]
    top = int(rng.integers(photo.shape[0] - side + 1))
    left = int(rng.integers(photo.shape[1] - side + 1))
    return keep * image + weight * photo[top : top + side, left : left + side]


def _frost_photo(photo: Bytes, table: int) -> Array:
    """Return a photograph at the scale the authors crop it at: a third or a fifth when small."""
    scale = {32: 0.2, 64: 0.3, 224: 1.0}[table]
    # At least a little larger than the image, whatever photograph was given.
    side = [max(round(length * scale), table) for length in photo.shape[1::-1]]
    return np.asarray(Image.fromarray(photo).resize(side, Image.Resampling.BICUBIC)) / 255.0


def brightness(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Add to the value of HSV; hue and saturation stay, so all channels scale alike."""
    (amount,) = parameters
    value = image.max(axis=2, keepdims=True)
    raised = np.clip(value + amount, 0, 1)
    scale = np.divide(raised, value, out=np.zeros_like(value), where=value > 0)
    return np.asarray(np.where(value > 0, image * scale, raised))


def contrast(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Move every value towards the mean of its channel."""
    (share,) = parameters
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * share + mean)


def elastic_transform(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Move three points of the image, then every pixel by a smooth random field."""
    side = image.shape[0]
    unit = _OFFICIAL_ELASTIC_SIDE if side == 224 else side
    alpha, sigma, shake = (unit * value for value in parameters)
    centre, reach = side // 2, side // 3
    before = np.array(
        [
            [centre + reach, centre + reach],
            [centre + reach, centre - reach],
            [centre - reach, centre - reach],
        ],
        dtype=np.float64,
    )
    after = before + rng.uniform(-shake, shake, before.shape)
    # The affine map from new places to old ones, in (row, column).
    ones = np.ones((3, 1))
    solved = np.linalg.solve(np.hstack([after, ones]), before)
    matrix, offset = solved[:2].T, solved[2]
    swap = np.array([[0, 1], [1, 0]])
    matrix, offset = swap @ matrix @ swap, swap @ offset
    warped = np.stack(
        [
            ndimage.affine_transform(image[:, :, channel], matrix, offset, order=1, mode="mirror")
            for channel in range(3)
        ],
        axis=2,
    )
    fields = [
        ndimage.gaussian_filter(rng.uniform(-1, 1, (side, side)), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    ]
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    places = [rows + alpha * fields[1], columns + alpha * fields[0]]
    return np.stack(
        [
            ndimage.map_coordinates(warped[:, :, channel], places, order=1, mode="reflect")
            for channel in range(3)
        ],
        axis=2,
    )


def _picture(image: Array) -> Image.Image:
    return Image.fromarray(np.round(image * 255).astype(np.uint8))


def pixelate(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Shrink and enlarge with a box filter."""
    (share,) = parameters
    side = image.shape[0]
    small = max(1, int(side * share))
    picture = _picture(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX)) / 255.0


def jpeg_compression(image: Array, parameters: Sequence[float], rng: np.random.Generator) -> Array:
    """Save as JPEG of a low quality."""
    (quality,) = parameters
    return resaved(np.round(image * 255).astype(np.uint8), int(quality)) / 255.0


def resaved(image: Bytes, quality: int) -> Bytes:
    """Return an image ``(s, s, 3)`` uint8 as a JPEG file of some quality holds it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
