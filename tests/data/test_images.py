"""Images by index: held or streamed, with any number of workers, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reta.data.images import DecodedImages, ImageSet, StreamedImages
from reta.data.listing import Listing, Texts
from reta.data.readers import read_folder
from reta.errors import DataError
from reta.models import build
from reta.synthesis.pool import build_pool
from reta.training import Protocol, accuracy, train_teacher

SIZE, CLASSES, PER_CLASS = 16, 3, 70

# torch says so where there are fewer processors than workers
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """Three classes of seventy noisy images of uneven sizes, more than one read of a worker."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class {label}").mkdir()
        for index in range(PER_CLASS):
            sides = (16 + index % 5, 16 + index % 3, 3)
            pixels = rng.integers(60 * label, 60 * label + 100, sides, dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class {label}" / f"{index:02d}.png")
    return read_folder(root).train


@pytest.fixture(scope="module")
def held(listing: Listing) -> DecodedImages:
    streamed = StreamedImages(listing, SIZE, workers=0)
    pixels = streamed.pixels(torch.arange(len(listing)))
    return DecodedImages(pixels, streamed.labels, listing.classes)


def streamed(listing: Listing, workers: int) -> StreamedImages:
    return StreamedImages(listing, SIZE, workers)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_workers_do_not_change_a_byte(workers: int, listing: Listing, held: DecodedImages) -> None:
    """Breaks when batches come back in the order workers finish, or one is lost or doubled."""
    order = torch.randperm(len(listing), generator=torch.Generator().manual_seed(1))
    for size in (1, 64, 100, 210):
        parts = order.split(size)
        for part, pixels in zip(parts, streamed(listing, workers).batches(parts), strict=True):
            assert pixels.dtype == torch.uint8
            assert torch.equal(pixels, held.pixels(part))


def test_indices_of_any_shape(listing: Listing, held: DecodedImages) -> None:
    """Breaks when anchors (ipc, classes) come back flat, or an empty or single index fails."""
    images = streamed(listing, 2)
    for shape in ((), (0,), (7,), (2, 5), (3, 4, 20)):
        indices = torch.randint(len(listing), shape, generator=torch.Generator().manual_seed(2))
        assert torch.equal(images.pixels(indices), held.pixels(indices))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_teacher_trains_alike_on_both(
    workers: int, listing: Listing, held: DecodedImages
) -> None:
    """Breaks when streaming shows the teacher other images, or in another order."""

    def trained(images: ImageSet) -> tuple[torch.Tensor, tuple[float, list[float | None]]]:
        model = build("convnet3", CLASSES, SIZE, seed=0)
        train_teacher(model, images, images, Protocol(2), flip=True, seed=0)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), accuracy(
            model, images
        )

    one, other = trained(streamed(listing, workers)), trained(held)
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]
    assert one[1][0] > 0.9


def test_the_pool_is_the_same(listing: Listing, held: DecodedImages) -> None:
    """Breaks when retrieval would see other features, classes or pixels in a streamed set."""
    model = build("convnet3", CLASSES, SIZE, seed=0).eval()
    one, other = (build_pool(images, model) for images in (streamed(listing, 2), held))
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.confidence, other.confidence)
    assert one.grey is other.grey is False
    members = one.members(1)
    assert torch.equal(members, other.members(1))
    assert torch.equal(one.pixels(members[:3]), other.pixels(members[:3]))


def test_mean_and_std_agree(listing: Listing, held: DecodedImages) -> None:
    """Breaks when a streamed set of few images is not looked at whole."""
    assert streamed(listing, 2).mean_std == held.mean_std


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(workers: int, listing: Listing, tmp_path: Path) -> None:
    """Breaks when a worker's error arrives as a traceback, or as a batch of noise."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for index in range(80):
            Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / label / f"{index:02d}.png")
    bad = tmp_path / "b" / "40.png"
    bad.write_bytes(bad.read_bytes()[:40])
    images = streamed(read_folder(tmp_path).train, workers)
    with pytest.raises(DataError, match=r"b/40\.png: ") as caught:
        list(images.batches(torch.arange(160).split(20)))
    assert "Traceback" not in str(caught.value)


def test_fingerprint_covers_what_it_says(tmp_path: Path) -> None:
    """Breaks when a changed name, label, length, pixel or size goes unnoticed."""

    def fingerprint(size: int = SIZE) -> str:
        return StreamedImages(read_folder(tmp_path).train, size, 0).fingerprint()

    for label in "ab":
        (tmp_path / label).mkdir()
        for index in range(3):
            Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / label / f"{index}.bmp")
    seen = [fingerprint(), fingerprint(size=8)]
    image = tmp_path / "a" / "0.bmp"
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    seen.append(fingerprint())
    image.write_bytes(content + b"\0")
    seen.append(fingerprint())
    image.rename(tmp_path / "a" / "00.bmp")
    seen.append(fingerprint())
    (tmp_path / "a" / "00.bmp").rename(tmp_path / "b" / "00.bmp")
    seen.append(fingerprint())
    (tmp_path / "b").rename(tmp_path / "c")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_many_names_take_little_room() -> None:
    """Breaks when the names are kept as Python strings, ten times as large."""
    names = [f"n{index:08d}/image_{index}.JPEG" for index in range(1000)] + ["", "é", "🦊"]
    texts = Texts(names)
    assert list(texts) == names
    assert len(texts) == 1003
    held = texts._block.nbytes + texts._ends.nbytes
    assert held < sum(len(name.encode()) for name in names) + 9 * len(names)
