"""A set that stays in its files: bounded memory, a pool in shards that resumes, a whole run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reta import preparation
from reta.config import Config
from reta.data.images import StreamedImages
from reta.data.sources import HELD_BYTES, Source, open_source
from reta.errors import DataError
from reta.models import Classifier, build, freeze
from reta.pipeline import distill
from reta.preparation import open_pool
from reta.storage import RunFolder, read_json
from reta.synthesis.pool import MappedFeatures

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def tree(root: Path, classes: int, count: int, side: int) -> str:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (root / f"{label:03d}").mkdir(parents=True)
        for index in range(count):
            small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((side, side))
            image.save(root / f"{label:03d}" / f"{index:03d}.jpg")
    return str(root)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tree(tmp_path_factory.mktemp("photos") / "set", 3, 60, 20)


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return freeze(build("convnet3", 3, 16, seed=0))


def streamed(photos: str) -> Source:
    return open_source(photos, image_size=16, stream=True, workers=2)


def test_only_large_sets_are_streamed(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a small set pays for decoding again and again, or a huge one is held."""
    assert not isinstance(open_source(photos, image_size=16).train, StreamedImages)
    monkeypatch.setattr("reta.data.sources.HELD_BYTES", 180 * 3 * 16**2 - 1)
    assert isinstance(open_source(photos, image_size=16).train, StreamedImages)
    assert not isinstance(open_source(photos, image_size=16, stream=False).train, StreamedImages)
    assert 50_000 * 3 * 32**2 < HELD_BYTES < 1_281_167 * 3 * 224**2


def test_the_pool_is_kept_in_shards(
    photos: str, teacher: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when shards overlap or leave a gap, or half precision loses more than it must."""
    monkeypatch.setattr(preparation, "IMAGES_PER_SHARD", 50)
    source = streamed(photos)
    pool = open_pool(source, teacher, "x", RunFolder(tmp_path))
    assert isinstance(pool.features, MappedFeatures)
    assert len(list((tmp_path / "pool").iterdir())) == 3
    held = open_source(photos, image_size=16)
    whole = open_pool(held, teacher, "x", RunFolder(tmp_path / "held"))
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0))
    shown = order.view(4, -1)
    assert pool.features.shape == tuple(whole.features.shape)
    assert pool.features[shown].dtype == torch.float32
    torch.testing.assert_close(pool.features[shown], whole.features[shown], rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(pool.confidence, whole.confidence)
    assert pool.grey is whole.grey is False
    assert pool.features[torch.empty(0, dtype=torch.int64)].shape == (0, whole.features.shape[1])


def test_a_killed_pool_goes_on_where_it_stopped(
    photos: str, teacher: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when an interruption costs more than a shard, or changes a byte."""
    monkeypatch.setattr(preparation, "IMAGES_PER_SHARD", 40)
    source, run = streamed(photos), RunFolder(tmp_path)
    looked: list[range] = []
    look = preparation.look

    def counted(images, model, span, dtype):  # type: ignore[no-untyped-def]
        if span.start == 80 and not looked.count(span):
            looked.append(span)
            raise KeyboardInterrupt
        looked.append(span)
        return look(images, model, span, dtype)

    monkeypatch.setattr(preparation, "look", counted)
    with pytest.raises(KeyboardInterrupt):
        open_pool(source, teacher, "x", run)
    before = {path.name: path.read_bytes() for path in (tmp_path / "pool").iterdir()}
    assert len(before) == 2
    open_pool(source, teacher, "x", run)
    assert [span.start for span in looked] == [0, 40, 80, 80, 120]
    assert all((tmp_path / "pool" / name).read_bytes() == data for name, data in before.items())


def test_a_pool_of_other_classes_is_refused(
    photos: str, teacher: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when features are matched with classes of another order."""
    source = streamed(photos)
    open_pool(source, teacher, "x", RunFolder(tmp_path))
    other = open_source(photos, image_size=16, stream=True, classes=["002", "001", "000"])
    same = replace(other, fingerprint=source.fingerprint)
    with pytest.raises(DataError, match="in another order: number 0 is '000', in the data '002'"):
        open_pool(same, teacher, "x", RunFolder(tmp_path))


def test_a_whole_run_from_files(photos: str, tmp_path: Path) -> None:
    """Breaks when any stage needs the images in memory, or workers change the result."""
    tiny = Config(
        photos,
        ipc=2,
        effort="smoke",
        image_size=16,
        teachers=("convnet3",),
        teacher_epochs=1,
        steps=4,
        label_epochs=2,
        stream=True,
    )
    runs = [distill(replace(tiny, workers=n), tmp_path / str(n)) for n in (1, 2)]
    one, other = (read_json(run / "manifest.json") for run in runs)
    assert one["files"]["images/000/000.png"]
    same = ("images/", "labels/", "pool/", "teachers/")
    assert {n: h for n, h in one["files"].items() if n.startswith(same)} == {
        n: h for n, h in other["files"].items() if n.startswith(same)
    }
    assert one["data"]["fingerprint"] == other["data"]["fingerprint"]


MEASURE = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from statistics import median
from torch import nn
from reta.data.readers import read_folder
from reta.data.images import StreamedImages
from reta.models import freeze, wrap
from reta.synthesis.pool import look

SIZE = 256
torch.set_num_threads(1)

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

class Watched(StreamedImages):
    seen, kept, leaking = [], [], False

    def batches(self, parts):
        for pixels in super().batches(parts):
            self.seen.append(own())
            if self.leaking:
                self.kept.append(pixels)
            yield pixels

files = read_folder(Path(sys.argv[1])).train
layers = [nn.AvgPool2d(16), nn.Flatten(), nn.Linear(768, 512), nn.Linear(512, 10)]
teacher = freeze(wrap(nn.Sequential(*layers), 10, SIZE))
many = replace(files, labels=files.labels.repeat(16), rows=files.rows.repeat(16))
for Watched.leaking in (False, True):
    images = Watched(many, SIZE, 2)
    look(images, teacher, range(len(images)), torch.float16)
    quarter = len(images.seen) // 4
    growth = median(images.seen[-quarter:]) - median(images.seen[:quarter])
    print(growth / (len(images) * 3 * SIZE ** 2))
    images.seen.clear()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Breaks when decoded images are kept, or the heap grows as if: 1,600 of them are 315 MB.

    Medians of the first and the last quarter of a pass: what happens to be alive at one moment
    does not count, and images that are kept count for three quarters, as a second pass shows.
    """
    place = tree(tmp_path / "set", 10, 10, 32)
    command = [sys.executable, "-c", MEASURE, place]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, leaking = map(float, answer.stdout.split())
    assert growth < 1 / 4
    assert leaking > 1 / 2
