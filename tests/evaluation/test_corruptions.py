"""Each of the 15 corruptions against an independent implementation, its moments or its formula."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from reta.data.images import DecodedImages
from reta.evaluation import corruptions as c
from reta.evaluation.robustness import Corruptions, _made, _official
from reta.evaluation.severities import CATEGORIES, NAMES, TABLES, table_for


def photo(side: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth random picture in [0, 1], with colours."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(side, side, 3)), (side / 10, side / 10, 0))
    return (noise - noise.min()) / (noise.max() - noise.min())


def as_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)


RNG = np.random.default_rng


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [16, 64, 72])
def test_same_image_same_bytes_and_harder_at_five(name, side):
    """Breaks when draws depend on what was drawn before, or severities are in the wrong order."""
    image, table = as_bytes(photo(side)), table_for(side)
    once = c.corrupt(image, name, 3, 7, table)
    assert once.shape == image.shape
    assert once.dtype == np.uint8
    assert (c.corrupt(image, name, 3, 7, table) == once).all()

    def change(severity: int) -> float:
        others = [c.corrupt(image, name, severity, index, table) for index in range(3)]
        return float(np.mean([np.abs(other.astype(float) - image).mean() for other in others]))

    # Elastic severities trade a large slow change for a small fast one, so they are not ordered.
    assert change(5) > (0 if name == "elastic_transform" else 0.9 * change(1))
    assert change(1) > 0


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "fog", "snow"])
def test_every_image_has_its_own_draw(name):
    """Breaks when all images get the same noise."""
    image = as_bytes(photo())
    assert (c.corrupt(image, name, 5, 0, 32) != c.corrupt(image, name, 5, 1, 32)).any()


def test_the_tables_are_whole():
    """Breaks when a severity or a parameter of one is missing."""
    assert sum(map(len, CATEGORIES.values())) == len(set(NAMES)) == 15
    for table in TABLES.values():
        assert set(table) == set(NAMES) == set(c.CORRUPTIONS)
        for name, rows in table.items():
            assert len(rows) == 5
            assert {len(row) for row in rows} == {len(TABLES[224][name][0])}
    assert [table_for(side) for side in (16, 28, 32, 48, 64, 96, 128, 224, 256)] == [
        32, 32, 32, 64, 64, 64, 224, 224, 224,
    ]  # fmt: skip


# --- noise: moments ------------------------------------------------------------------------------


def test_noise_has_the_moments_of_its_law():
    """Breaks when σ, c or the share of struck values is scaled or squared by mistake."""
    grey = np.full((200, 200, 3), 0.5)
    normal = c.gaussian_noise(grey, (0.1,), RNG(0)) - 0.5
    assert normal.mean() == pytest.approx(0, abs=2e-3)
    assert normal.std() == pytest.approx(0.1, rel=0.02)
    shot = c.shot_noise(grey, (25,), RNG(0))
    assert shot.mean() == pytest.approx(0.5, rel=0.01)
    assert shot.var() == pytest.approx(0.5 / 25, rel=0.03)  # mean over scale
    struck = c.impulse_noise(grey, (0.2,), RNG(0))
    assert (struck == 0).mean() == pytest.approx(0.1, abs=4e-3)
    assert (struck == 1).mean() == pytest.approx(0.1, abs=4e-3)
    assert (struck == 0.5).mean() == pytest.approx(0.8, abs=6e-3)


# --- blur ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLES[224]["defocus_blur"] + TABLES[32]["defocus_blur"])
def test_defocus_is_a_convolution_with_a_disk(row):
    """Breaks when the disk has another radius or sum, or borders are not mirrored."""
    kernel = c.disk_kernel(*row)
    # Where the disk touches its frame the authors' window counts the frame twice: 1 % too bright.
    assert kernel.sum() == pytest.approx(1, abs=0.015)
    assert kernel == pytest.approx(kernel.T)
    middle = len(kernel) // 2
    far = np.hypot(*np.indices(kernel.shape) - middle) > row[0] + 2 * math.sqrt(2)
    assert kernel[far].max(initial=0) < 1e-12
    image = photo(24)
    padded = F.pad(torch.from_numpy(image).permute(2, 0, 1)[None], [middle] * 4, mode="reflect")
    weights = torch.from_numpy(kernel)[None, None].expand(3, 1, -1, -1)
    expected = F.conv2d(padded, weights, groups=3)[0].permute(1, 2, 0).numpy()
    assert c.defocus_blur(image, row, RNG(0)) == pytest.approx(expected)


def test_glass_takes_every_pixel_from_nearby():
    """Breaks when a pixel comes from further than reach × rounds, or the frame is touched."""
    side, reach = 20, 2
    places = np.arange(side * side).reshape(side, side)
    image = np.stack([places // 256 / 255, places % 256 / 255, np.zeros_like(places)], axis=2)
    glassy = c.glass_blur(image, (1e-9, reach, 1), RNG(0))
    taken = np.round(glassy * 255).astype(int) @ [256, 1, 0]
    assert set(taken.flat) <= set(places.flat)
    rows, columns = np.indices((side, side))
    # A copy of a copy may travel further, but never out of the square that was walked.
    assert (np.abs(taken // side - rows) + np.abs(taken % side - columns) > 0).any()
    frame = np.ones((side, side), bool)
    frame[reach + 1 : side - reach + 1, reach + 1 : side - reach + 1] = False
    assert (taken == places)[frame].all()


def test_glass_as_the_plain_loop():
    """Breaks when the order of the walk or the bounds of the shifts differ from the definition."""
    image, reach = photo(12), 1
    smooth = ndimage.gaussian_filter(image, (0.5, 0.5, 0), mode="nearest")
    pixels = np.floor(smooth * 255) / 255
    shifts = RNG(3).integers(-reach, reach, (12 - 2 * reach, 12 - 2 * reach, 2))
    for i, h in enumerate(range(12 - reach, reach, -1)):
        for j, w in enumerate(range(12 - reach, reach, -1)):
            dx, dy = shifts[i, j]
            pixels[h, w] = pixels[h + dy, w + dx]
    expected = ndimage.gaussian_filter(pixels, (0.5, 0.5, 0), mode="nearest")
    got = c.glass_blur(image, (0.5, reach, 1), RNG(3))
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("angle", [0, 30, -45, -100])
def test_motion_is_a_sum_of_shifted_images(angle):
    """Breaks when the line has another length, direction or weight, or borders wrap around."""
    image, radius, sigma = photo(16), 4, 2.0
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    expected = np.zeros_like(image)
    for y in range(16):
        for x in range(16):
            for i, weight in enumerate(weights):
                dy = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
                dx = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
                source = image[min(max(y + dy, 0), 15), min(max(x + dx, 0), 15)]
                expected[y, x] += weight / sum(weights) * source
    assert c.motion(image, radius, sigma, angle) == pytest.approx(expected)


def test_zoom_keeps_the_middle_and_enlarges_it():
    """Breaks when the crop is off centre, or a factor enlarges by another."""
    side = 65
    ramp = np.linspace(-1, 1, side)[:, None, None] * np.ones((1, side, 3))
    large = c.zoomed(ramp, 1.25)
    assert large.shape == ramp.shape
    slope = np.polyfit(np.arange(side), large[:, 0, 0], 1)[0]
    assert slope == pytest.approx(2 / (side - 1) / 1.25, rel=0.03)
    assert large[side // 2, 0, 0] == pytest.approx(0, abs=0.03)
    still = np.full((32, 32, 3), 0.3)
    assert c.zoom_blur(still, (1.31, 0.03), RNG(0)) == pytest.approx(still)


# --- weather -------------------------------------------------------------------------------------


def test_plasma_is_midpoint_displacement():
    """Breaks when a neighbour is missing from a mean: without displacement all would be equal."""

    class Halfway:
        """Draws the middle of every range."""

        def uniform(self, low, high, shape):
            return (
                np.zeros(shape) + (low + high) / 2 + 1e-9 * np.arange(np.prod(shape)).reshape(shape)
            )

    flat = c.plasma(16, 2.0, Halfway())
    assert flat.min() == 0
    assert flat.max() == 1
    field = c.plasma(64, 3.0, RNG(0))
    rough = c.plasma(64, 1.2, RNG(0))
    steps = [np.abs(np.diff(one, axis=0)).mean() for one in (field, rough)]
    assert steps[0] < steps[1] / 2  # a larger decay is smoother
    seam = np.abs(field[0] - field[-1]).mean()
    assert seam < 4 * steps[0]  # a torus has no seam


def test_fog_keeps_the_maximum_and_needs_no_cloud_at_amount_0():
    """Breaks when the scale back is missing or uses another maximum."""
    image = photo() * 0.8
    assert c.fog(image, (0, 2), RNG(0)) == pytest.approx(image)
    foggy = c.fog(np.full((32, 32, 3), 0.5), (1.5, 2), RNG(0))
    cloud = c.plasma(32, 2, RNG(0))[:, :, None]
    assert foggy == pytest.approx((0.5 + 1.5 * cloud) * 0.5 / 2.0 * np.ones(3))


def test_brightness_is_the_value_of_hsv():
    """Breaks when hue or saturation changes, against the standard library's conversion."""
    image = photo(8)
    image[0, 0] = 0
    bright = np.clip(c.brightness(image, (0.3,), RNG(0)), 0, 1)
    for pixel, got in zip(image.reshape(-1, 3), bright.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert got == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)))


def test_snow_without_flakes_only_whitens():
    """Breaks when the grey weights, the mixing or the threshold differ from the definition."""
    image = photo()
    got = c.snow(image, (0.1, 0.2, 1, 10.0, 8, 3, 0.8), RNG(0))  # no noise reaches 10
    grey = np.asarray(Image.fromarray(as_bytes(image)).convert("L"))[:, :, None] / 255
    expected = 0.8 * image + 0.2 * np.maximum(image, grey * 1.5 + 0.5)
    assert got == pytest.approx(expected, abs=3e-3)
    flakes = c.snow(np.zeros((32, 32, 3)), TABLES[32]["snow"][4], RNG(0))
    blown = flakes - 0.2 * 0.5
    assert blown[:, :, 0] == pytest.approx(np.rot90(blown[:, :, 0], 2))  # laid twice, turned
    assert blown.max() > 0.1


def test_frost_mixes_a_piece_of_a_photograph():
    """Breaks when the weights are exchanged, or a piece is taken from outside the photograph."""
    image = photo()
    white = [np.ones((40, 50, 3))]
    assert c.frost(image, (0.75, 0.45), RNG(0), white) == pytest.approx(0.75 * image + 0.45)
    numbers = np.arange(40 * 50).reshape(40, 50, 1) * np.ones(3)
    piece = c.frost(np.zeros((32, 32, 3)), (1, 1), RNG(1), [numbers])[:, :, 0]
    assert np.unique(np.diff(piece, axis=1)) == pytest.approx([1])
    assert np.unique(np.diff(piece, axis=0)) == pytest.approx([50])
    small = np.zeros((20, 20, 3), np.uint8)  # smaller than the image: enlarged
    assert c.corrupt(as_bytes(image), "frost", 1, 0, 32, [small]).shape == image.shape


# --- digital -------------------------------------------------------------------------------------


def test_contrast_keeps_the_mean_and_scales_the_deviation():
    """Breaks when the mean is over channels together."""
    image = photo()
    got = c.contrast(image, (0.3,), RNG(0))
    assert got.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)))
    assert got.std(axis=(0, 1)) == pytest.approx(0.3 * image.std(axis=(0, 1)))


def test_elastic_at_rest_and_as_an_affine_map():
    """Breaks when rows and columns are exchanged, or the map goes the wrong way."""
    image = photo(33)
    assert c.elastic_transform(image, (0, 0, 0), RNG(0)) == pytest.approx(image)
    rng = RNG(5)
    moves = RNG(5).uniform(-0.08 * 33, 0.08 * 33, (3, 2))
    got = c.elastic_transform(image, (0, 0, 0.08), rng)
    # Where a point (x, y) is moved to, the warped image shows what was at the point.
    centre, reach = 16, 11
    points = [(centre + reach, centre + reach), (centre + reach, centre - reach)]
    for (x, y), (dx, dy) in zip(points, moves[:2], strict=True):
        there = [[y + dy], [x + dx]]
        if not all(0 <= value[0] <= 32 for value in there):
            continue
        for channel in range(3):
            shown = ndimage.map_coordinates(got[:, :, channel], there, order=1)[0]
            assert shown == pytest.approx(image[y, x, channel], abs=0.03)


def test_pixelate_and_jpeg_are_pillows():
    """Breaks when a size, filter or quality differs."""
    image = as_bytes(photo(40))
    tile = c.corrupt(image, "pixelate", 5, 0, 224)
    box = Image.Resampling.BOX
    expected = np.asarray(Image.fromarray(image).resize((10, 10), box).resize((40, 40), box))
    assert (tile == expected).all()
    blocks = tile.reshape(10, 4, 10, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=7)
    assert (c.corrupt(image, "jpeg_compression", 5, 0, 224) == np.asarray(Image.open(buffer))).all()


# --- against the authors' package, where it can be imported ---------------------------------------


@pytest.mark.parametrize(
    "name",
    ["brightness", "contrast", "defocus_blur", "jpeg_compression", "pixelate", "zoom_blur"],
)
def test_against_imagecorruptions(name):
    """Breaks when a deterministic corruption differs from the package many papers used."""
    package = pytest.importorskip("imagecorruptions", exc_type=ImportError)
    image = as_bytes(photo(224))
    for severity in (1, 3, 5):
        expected = package.corrupt(image, corruption_name=name, severity=severity)
        got = c.corrupt(image, name, severity, 0, 224)
        assert np.abs(got.astype(int) - expected.astype(int)).max() <= 2


# --- where images come from -----------------------------------------------------------------------


def image_set(side: int = 32) -> DecodedImages:
    pixels = np.stack([as_bytes(photo(side, seed)) for seed in range(6)]).transpose(0, 3, 1, 2)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return DecodedImages(torch.from_numpy(pixels.copy()), labels, ("a", "b", "c"))


def test_cifar_c_folders_are_read_by_severity_and_label(tmp_path):
    """Breaks when a severity begins at the wrong image, or a label is that of another image."""
    rng = np.random.default_rng(0)
    every = rng.integers(0, 256, (5 * 8, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    np.save(tmp_path / "fog.npy", every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reta.evaluation.robustness._CIFAR_IMAGES", 8)
        read = _official(tmp_path, ("a", "b", "c"), 32, 0)
        images = read("fog", 3)
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
    expected = every[2 * 8 :][[0, 1, 2, 4, 5, 6]].transpose(0, 3, 1, 2)
    assert (images.pixels(torch.arange(6)).numpy() == expected).all()
    with pytest.raises(Exception, match=r"snow\.npy: not found"):
        read("snow", 1)


def test_imagenet_c_trees_are_read_by_class_name(tmp_path):
    """Breaks when classes are taken in folder order instead of the run's."""
    for name, shade in (("b", 200), ("a", 50)):
        folder = tmp_path / "weather/fog/2" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (48, 32), (shade,) * 3).save(folder / "x.png")
    images = _official(tmp_path, ("b", "a"), 32, 0)("fog", 2)
    assert images.pixels(torch.arange(2))[:, 0, 0, 0].tolist() == [200, 50]


def test_images_are_keyed_by_their_place():
    """Breaks when the noise of an image depends on the others that are measured with it."""
    clean = image_set()
    read = _made(clean, 32, [], again=False)
    every = read("gaussian_noise", 5).pixels(torch.arange(6))
    alone = c.corrupt(clean.images[4].permute(1, 2, 0).numpy(), "gaussian_noise", 5, 4, 32)
    assert (every[4].permute(1, 2, 0).numpy() == alone).all()
    again = _made(clean, 32, [], again=True)("gaussian_noise", 5).pixels(torch.arange(6))
    assert (again != every).any()


def test_what_cannot_be_corrupted_is_named():
    """Breaks when a misspelt corruption is only met after the others were measured."""
    with pytest.raises(Exception, match="did you mean 'snow'"):
        Corruptions(names=("snowy",))
    with pytest.raises(Exception, match="choose from 1 to 5"):
        Corruptions(severities=(0,))
