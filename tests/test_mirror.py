"""A run whose home is a URL: the same bytes, goes on from anywhere, and trusts nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

import reta
from reta import mirror
from reta.config import Config
from reta.errors import StorageError, UsageError
from reta.mirror import local
from reta.pipeline import distill
from reta.storage import RunFolder
from reta.students import train

TINY = Config(
    "digits",
    ipc=1,
    classes=2,
    per_class=20,
    teachers=("convnet3",),
    teacher_epochs=1,
    steps=4,
    label_epochs=2,
    student="convnet3",
    students=1,
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Copies of URLs that no other test sees."""
    monkeypatch.setenv("RETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_HOMES", {})


def forget_everything_here(monkeypatch, tmp_path):
    """Become another machine: no local copy, nothing attached."""
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(mirror, "_HOMES", {})


def test_another_machine_goes_on_from_the_url(monkeypatch, tmp_path):
    """Breaks when something that a later command needs stays on the machine that made it."""
    url = "memory://bucket/run"
    store = fsspec.filesystem("memory")
    distill(TINY, url)
    teacher = store.cat_file("/bucket/run/teachers/convnet3.safetensors")
    forget_everything_here(monkeypatch, tmp_path)
    assert reta.verify(url) == []
    data = reta.load(url)
    assert len(data) == 2
    forget_everything_here(monkeypatch, tmp_path)
    train(url)
    reta.report(url)
    names = {name.removeprefix("/bucket/run/") for name in store.find("/bucket/run")}
    assert {"metrics.json", "README.md", "report.html", "manifest.json"} <= names
    assert reta.verify(url) == []
    forget_everything_here(monkeypatch, tmp_path)
    for unit in ("recover-000", "labels-000"):  # made again from what is brought
        store.rm_file(f"/bucket/run/units/{unit}.json")
    distill(TINY, url)
    assert store.cat_file("/bucket/run/teachers/convnet3.safetensors") == teacher
    there = distill(TINY, tmp_path / "plain")
    for name in RunFolder(there).manifest()["files"]:
        if not name.startswith("units/"):
            assert store.cat_file(f"/bucket/run/{name}") == (there / name).read_bytes()


def test_damage_at_the_url_is_found_and_never_used(monkeypatch, tmp_path):
    """Breaks when verify looks at the local copy, or a damaged file is brought and believed."""
    url = (tmp_path / "store/run").as_uri()
    distill(TINY, url)
    path = tmp_path / "store/run/labels/views-000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = reta.verify(url)
    assert "labels/views-000.safetensors: changed" in problem
    forget_everything_here(monkeypatch, tmp_path)
    distill(TINY, url)  # makes the unit again and sends it home
    assert reta.verify(url) == []


def test_the_url_is_the_truth(tmp_path):
    """Breaks when a local copy of a run that was deleted at its home still counts as done."""
    url = (tmp_path / "store/run").as_uri()
    folder = RunFolder(url)
    unit = folder.unit("a", 1)
    unit.write("x/y.txt", b"content")
    unit.finish()
    assert json.loads((tmp_path / "store/run/units/a.json").read_text())["files"]
    assert RunFolder(folder.path).unit("a", 1).done
    assert set(RunFolder(folder.path / "nested").records()) == set()
    shutil.rmtree(tmp_path / "store/run")
    assert not RunFolder(folder.path).unit("a", 1).done


def test_a_record_cannot_bring_files_from_outside(tmp_path):
    """Breaks when a hostile record writes outside the folder."""
    url = (tmp_path / "store/run").as_uri()
    folder = RunFolder(url)
    (tmp_path / "store/run").mkdir(parents=True)
    (tmp_path / "store/evil").write_text("evil")
    folder.bring({"../evil": "0" * 64})
    assert not (folder.path.parent / "evil").exists()


def test_a_store_that_cannot_be_reached_is_one_clear_error(monkeypatch, tmp_path):
    """Breaks when a missing driver or a refused write ends in a traceback of a library."""
    with pytest.raises(UsageError, match=r"nosuchstore://bucket/run: Protocol not known"):
        RunFolder("nosuchstore://bucket/run").send(["x"])
    (tmp_path / "file").write_text("a file where a folder is needed")
    unit = RunFolder((tmp_path / "file/run").as_uri()).unit("a", 1)
    with pytest.raises(StorageError, match="could not be written"):
        unit.finish()


def test_a_path_stays_a_path(tmp_path):
    """Breaks when a plain folder is taken for a URL."""
    assert local("runs/a") == Path("runs/a")
    assert local(tmp_path) == tmp_path
    assert replace(TINY, ipc=1) == TINY
