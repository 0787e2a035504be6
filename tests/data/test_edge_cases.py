"""Sets at the edge of sense, and places at the edge of what file systems allow."""

from __future__ import annotations

import os
import random
import stat
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reta.config import Config
from reta.data.sources import open_source, scan
from reta.errors import DataError, UsageError
from reta.parts import class_folders
from reta.pipeline import distill
from reta.storage import RunFolder, read_json


def save(path: Path, seed: int, flat: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (1 if flat else 8, 1 if flat else 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((16, 16)).save(path)


def tiny(data: Path, **settings: object) -> Config:
    given: dict[str, object] = {
        "ipc": 1,
        "effort": "smoke",
        "image_size": 16,
        "teachers": ("convnet3",),
        "teacher_epochs": 1,
        "steps": 4,
        "label_epochs": 2,
        "gate": False,
    }
    fields = set(Config.__dataclass_fields__)
    return Config(str(data), **{k: v for k, v in (given | settings).items() if k in fields})  # type: ignore[arg-type]


class TestClasses:
    def test_an_empty_class_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        """Breaks when labels silently skip a class that exists as a folder."""
        for i in range(4):
            save(tmp_path / "full" / f"{i}.png", i)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="no images of 'empty'"):
            open_source(str(tmp_path))
        report = scan(str(tmp_path))
        assert any("'empty' has no usable image" in row["reason"] for row in report.problems)

    def test_one_image_in_a_class_stays_in_training(self, tmp_path: Path) -> None:
        """Breaks when the only image of a class is held out, leaving nothing to distil."""
        save(tmp_path / "one" / "0.png", 0)
        for i in range(6):
            save(tmp_path / "many" / f"{i}.png", i + 1)
        source = open_source(str(tmp_path), image_size=16)
        assert source.train.labels.bincount().tolist() == [5, 1]
        run = distill(tiny(tmp_path), tmp_path.parent / "run-one")
        warnings = read_json(run / "manifest.json")["warnings"]
        assert any("No more real images than synthetic ones in: one" in w for w in warnings)

    def test_twelve_hundred_classes_keep_their_order(self, tmp_path: Path) -> None:
        """Breaks at class 1000 where folders sort as text: 'new1000' before 'new101'."""
        names = [f"new{index:03d}" for index in range(1200)]
        for index, name in enumerate(names):
            place = tmp_path / name
            place.mkdir()
            for i in range(2):
                colour = (index % 256, index // 256, i)
                Image.new("RGB", (8, 8), colour).save(place / f"{i}.png")
        source = open_source(str(tmp_path), image_size=8)
        assert source.classes == tuple(sorted(names))
        assert source.classes.index("new1000") < source.classes.index("new101")
        pixels = source.train.pixels(torch.arange(len(source.train)))[:, :2, 0, 0].long()
        index = (pixels[:, 0] + 256 * pixels[:, 1]).tolist()
        shown = [names[i] for i in index]
        assert shown == [source.classes[label] for label in source.train.labels.tolist()]
        folders = class_folders(source.classes)
        assert sorted(folders) == folders
        assert len(set(folders)) == 1200
        by_number = class_folders(names)  # in this order plain names would not sort
        assert sorted(by_number) == by_number
        assert [name.split("_", 1)[1] for name in by_number] == names

    def test_more_images_per_class_than_there_are(self, tmp_path: Path) -> None:
        """Breaks when ipc beyond the real images crashes, or says nothing of the repeats."""
        for name in "ab":
            for i in range(3):
                save(tmp_path / "set" / name / f"{i}.png", ord(name) + i)
        run = distill(tiny(tmp_path / "set", ipc=5), tmp_path / "run")
        assert len(list((run / "images" / "a").iterdir())) == 5
        warnings = read_json(run / "manifest.json")["warnings"]
        assert any("No more real images" in warning for warning in warnings)

    def test_identical_images_are_distilled_and_said(self, tmp_path: Path) -> None:
        """Breaks on zero distances and variances; or when nobody hears that all are one image."""
        for name in "ab":
            for i in range(6):
                save(tmp_path / "set" / name / f"{i}.png", ord(name))
        report = scan(str(tmp_path / "set"))
        (found,) = report.duplicates
        assert (found["kind"], found["pairs"]) == ("exact", 10)
        run = distill(tiny(tmp_path / "set", ipc=2), tmp_path / "run")
        assert RunFolder(run).verify() == []
        assert any("training images too" in w for w in read_json(run / "manifest.json")["warnings"])

    def test_one_class_runs(self, tmp_path: Path) -> None:
        """Breaks when chance, margins or a BN group of one class divide by zero."""
        for i in range(8):
            save(tmp_path / "set" / "only" / f"{i}.png", i)
        run = distill(tiny(tmp_path / "set", ipc=2), tmp_path / "run")
        assert read_json(run / "manifest.json")["classes"] == ["only"]


NAMES = [
    "with space",
    "  leading and trailing ",
    unicodedata.normalize("NFC", "Café Ångström"),
    unicodedata.normalize("NFD", "Crème brûlée"),
    "🦊 fox",
    "猫",
    'quote\'s "and" $HOME;&|',
    "-rf",
    "%s %d {x}",
    "x" * 200,
]


class TestPlaces:
    def test_any_name_of_a_class_or_a_file(self, tmp_path: Path) -> None:
        """Breaks when a name that a file system allows loses an image or escapes the folder."""
        root = tmp_path / "my photos — фото 🦊"
        for number, name in enumerate(NAMES):
            for i in range(3):
                save(root / name / f"{NAMES[(number + i) % len(NAMES)]}.png", 10 * number + i)
        source = open_source(str(root), image_size=16)
        assert sorted(source.classes) == sorted(unicodedata.normalize("NFC", n) for n in NAMES)
        assert len(source.train) + len(source.test) == 3 * len(NAMES)
        streamed = open_source(str(root), image_size=16, stream=True, workers=2)
        every = torch.arange(len(source.train))
        assert torch.equal(streamed.train.pixels(every), source.train.pixels(every))
        run = distill(tiny(root), tmp_path / "out put ü")
        made = {path.parent.parent for path in run.rglob("000.png")}
        assert made == {run / "images"}
        assert RunFolder(run).verify() == []

    def test_names_that_differ_in_form_only(self, tmp_path: Path) -> None:
        """Breaks when one of two files whose names differ in Unicode form alone is lost."""
        names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
        for number, name in enumerate(names):
            save(tmp_path / "a" / f"{name}.png", number)
        save(tmp_path / "a" / "z.png", 5)
        if len(list((tmp_path / "a").iterdir())) < 3:
            pytest.skip("this file system takes both names for one")
        source = open_source(str(tmp_path), image_size=16)
        assert len(source.train) + len(source.test) == 3

    def test_a_folder_that_may_only_be_read(self, tmp_path: Path) -> None:
        """Breaks when reading leaves a cache or a lock beside the images."""
        root = tmp_path / "set"
        for name in "ab":
            for i in range(4):
                save(root / name / f"{i}.png", ord(name) + i)
        before = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))
        for folder in (root, root / "a", root / "b"):
            folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            distill(tiny(root), tmp_path / "run")
            scan(str(root))
        finally:
            for folder in (root, root / "a", root / "b"):
                folder.chmod(0o755)
        assert sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*")) == before

    def test_links(self, tmp_path: Path) -> None:
        """Breaks when linked images or classes are passed over, or a circle of links never ends."""
        for i in range(4):
            save(tmp_path / "store" / f"{i}.png", i)
        root = tmp_path / "set"
        root.mkdir()
        (root / "linked").symlink_to(tmp_path / "store", target_is_directory=True)
        (root / "own").mkdir()
        for i in range(4):
            (root / "own" / f"{i}.png").symlink_to(tmp_path / "store" / f"{i}.png")
        (root / "own" / "circle").symlink_to(root, target_is_directory=True)
        source = open_source(str(root), image_size=16)
        assert len(source.train) + len(source.test) == 8
        (root / "own" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        with pytest.raises(DataError, match=r"gone\.png: no such file"):
            open_source(str(root), image_size=16)
        assert [Path(row["path"]).name for row in scan(str(root)).problems][:1] == ["gone.png"]

    def test_another_folder_while_it_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Breaks when a relative path is read again after the process moved on."""
        for name in "ab":
            for i in range(80):
                save(tmp_path / "set" / name / f"{i}.png", ord(name) + i)
        monkeypatch.chdir(tmp_path)
        source = open_source("set", image_size=16, stream=True, workers=0)
        monkeypatch.chdir("/")
        assert source.train.pixels(torch.tensor([0, 100])).shape == (2, 3, 16, 16)

    @pytest.mark.parametrize("given", ["nowhere/at/all", "./gone", "hf:", "im age"])
    def test_no_such_set(self, given: str) -> None:
        """Breaks when a misspelt place is a traceback."""
        with pytest.raises((UsageError, DataError)):
            open_source(given, download=False)


def test_any_bytes_as_an_image_file(tmp_path: Path) -> None:
    """Breaks when scanning files of random bytes under image names crashes."""
    rng = random.Random(0)
    for number, ending in enumerate([".png", ".jpg", ".gif", ".webp", ".tif", ".bmp"] * 5):
        place = tmp_path / "a" / f"{number}{ending}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 5000])))
    report = scan(str(tmp_path))
    assert len(report.problems) == 30 + 1  # and the class that has nothing left
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208
