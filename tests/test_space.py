"""A disk that is too small is said before the work."""

from collections import namedtuple

import pytest

from crashes import CONFIG, World, make_world
from reta import files
from reta.data.formats import label_format
from reta.errors import StorageError
from reta.executor import Serial
from reta.models import build
from reta.parts import Job
from reta.pipeline import distill, distill_jobs
from reta.space import block_bytes, pool_bytes, shard_bytes, training_bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world") / "run")


def size_of(folder, part: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{part}/**/*") if path.is_file())


def test_the_estimate_is_enough_and_not_far_off(world):
    """Breaks when the disk fills in spite of the check, or a run that fits is refused."""
    written = size_of(world.folder, "images") + size_of(world.folder, "history")
    assert written <= block_bytes(4, 3, 8) <= 20 * written
    form = label_format("int8", 1)
    labels = size_of(world.folder, "labels")
    assert labels <= shard_bytes(50, 12, form, 4) + shard_bytes(2, 12, form, 4) <= 3 * labels


def test_too_small_a_disk_costs_no_work(world, tmp_path, monkeypatch):
    """Breaks when hours are computed that cannot be stored."""
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5000, 5000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    job = Job(world.before("recover", tmp_path / "run"), world.prepared.config)
    with pytest.raises(StorageError, match=r"run: needs [\d,]+ bytes, but the disk has only 5,000"):
        distill_jobs(world.prepared, [job], Serial())
    assert not list(job.path.glob("images/**/*.png"))


def test_teachers_students_and_the_pool_are_checked_too(world, tmp_path, monkeypatch):
    """Breaks when a network is trained that cannot be stored."""
    model = build("convnet3", 4, 8)
    most = training_bytes(model)
    assert size_of(world.folder, "teachers") <= most <= 6 * size_of(world.folder, "teachers")
    count, width = len(world.prepared.source.train), model.feature_dim
    assert size_of(world.folder, "pool") <= pool_bytes(count, width, 4)
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5000, 5000)
    for stage, part in (("pool", "pool"), ("train", "students")):
        folder = world.before(stage, tmp_path / stage)
        with monkeypatch.context() as patch:
            patch.setattr(files.shutil, "disk_usage", lambda _: usage)
            with pytest.raises(StorageError, match=r"needs [\d,]+ bytes"):
                world.work(stage, folder)
        assert not list(folder.glob(f"{part}/*"))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes"):
        distill(CONFIG, tmp_path / "new")
    assert not list((tmp_path / "new").glob("teachers/*"))
