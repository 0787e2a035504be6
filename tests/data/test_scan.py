"""Bad images: found, named, left out where asked; duplicates and leaks; the hostile corpus."""

from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_intake import BAD, CORPUS, encoded

from reta import cli
from reta.config import Config
from reta.data.refusals import leave_out
from reta.data.scan import ALIKE, NEAR, perceptual_hash, similar_pairs
from reta.data.sources import open_source, scan
from reta.data.tables import read_parquet
from reta.errors import DataError
from reta.pipeline import distill
from reta.storage import RunFolder, read_json
from reta.students import train


def photo(seed: int, side: int = 64) -> Image.Image:
    """Return a smooth random picture, as unlike another as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def folder(root: Path, count: int = 60) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            photo(1000 * label + index).save(root / name / f"{index:03d}.png")
    return root


def spoil(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:60])


def test_a_hostile_corpus_has_no_silent_corruption(tmp_path: Path) -> None:
    """Breaks when a file crashes the run, is lost without a word, or comes in as other pixels."""
    (tmp_path / "a").mkdir()
    for name, (content, *_) in CORPUS.items():
        (tmp_path / "a" / f"good_{name.replace('.mpo', '.jpg')}").write_bytes(content)
    for name, (content, _) in BAD.items():
        (tmp_path / "a" / f"bad_{name}").write_bytes(content)
    assert len(CORPUS) + len(BAD) >= 30
    (tmp_path / "a" / "phone.heic").write_bytes(b"ftypheic")
    (tmp_path / "a" / "notes.txt").write_text("nothing to see")
    report = scan(str(tmp_path), workers=2)
    told = {Path(row["path"]).name: row["reason"] for row in report.problems}
    refused = {
        name for name in BAD if Path(name).suffix in (".png", ".jpg", ".bmp", ".webp", ".tif")
    }
    assert {name for name in told if name.startswith("bad_")} >= {f"bad_{n}" for n in refused}
    assert not any(name.startswith("good_") and "same image" not in told[name] for name in told)
    assert "ending '.heic'" in told["phone.heic"]
    assert "notes.txt" not in told
    assert all(
        any(fix in r for fix in ("convert", "remove", "replace", "save")) for r in told.values()
    )
    noted = {Path(row["path"]).name for row in report.notes}
    assert {"good_animated.gif", "good_animated.webp", "good_animated.png"} <= noted
    usable = report.classes["a"]["training"]
    assert usable == len(CORPUS)
    # what is left is read as the table of good images says
    for path in sorted((tmp_path / "a").glob("bad_*")):
        path.unlink()
    source = open_source(str(tmp_path), image_size=12, per_class=None)
    assert len(source.train) + len(source.test) == len(CORPUS)


class TestPolicies:
    @pytest.mark.parametrize("stream", [False, True])
    def test_fail_names_and_skip_leaves_out(self, stream: bool, tmp_path: Path) -> None:
        """Breaks when a bad image becomes a black square, or its label goes to the next one."""
        root = folder(tmp_path / "train")
        folder(tmp_path / "test", 3)
        clean = open_source(str(tmp_path), image_size=16, stream=stream)
        spoil(root, "cat/007.png")
        spoil(tmp_path / "test", "dog/001.png")
        if not stream:  # a streamed set is read later
            with pytest.raises(DataError, match=r"cat/007\.png") as caught:
                open_source(str(tmp_path), image_size=16)
            assert "--bad-images skip" in str(caught.value)
        source = open_source(str(tmp_path), image_size=16, stream=stream, bad_images="skip")
        assert [(left.part, left.key) for left in source.left_out] == [
            ("training", "cat/007.png"),
            ("test", "dog/001.png"),
        ]
        keep = [place for place in range(120) if place != 7]
        wanted = clean.train.pixels(torch.tensor(keep))
        assert torch.equal(source.train.pixels(torch.arange(119)), wanted)
        assert torch.equal(source.train.labels, clean.train.labels[keep])
        assert source.fingerprint != clean.fingerprint
        known = [f"{left.part} {left.key}" for left in source.left_out]
        again = open_source(
            str(tmp_path), image_size=16, stream=stream, bad_images="skip", left_out=known
        )
        assert again.fingerprint == source.fingerprint

    @pytest.mark.parametrize("stream", [False, True])
    def test_many_bad_images_are_no_accident(self, stream: bool, tmp_path: Path) -> None:
        """Breaks when half a class may silently be missing."""
        root = folder(tmp_path / "train")
        folder(tmp_path / "test", 3)
        spoil(root, "cat/007.png", "cat/008.png")
        with pytest.raises(DataError, match=r"2 of the 60 of class 'cat', more than 1 %"):
            open_source(str(tmp_path), image_size=16, stream=stream, bad_images="skip")

    def test_a_hundred_in_a_row(self, tmp_path: Path) -> None:
        """Breaks when a torn download of one part of a large set is taken for bad luck."""
        arrays = {"image": [], "label": []}
        good = encoded(photo(0))
        for index in range(20_000):
            torn = 5000 <= index < 5100
            arrays["image"].append({"bytes": b"torn" if torn else good, "path": ""})
            arrays["label"].append(index % 2)
        pq.write_table(pa.table(arrays), tmp_path / "set.parquet")
        listing = read_parquet(tmp_path / "set.parquet").train
        bad = {place: f"row {place}" for place in range(5000, 5100)}
        with pytest.raises(DataError, match="100 of them in a row"):
            leave_out(listing, bad, "training", "skip")
        del bad[5050]
        kept, left = leave_out(listing, bad, "training", "skip")
        assert (len(kept), len(left)) == (19_901, 99)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_run_records_and_keeps_them(self, stream: bool, tmp_path: Path) -> None:
        """Breaks when nobody can tell later what the set was made without."""
        root = folder(tmp_path / "photos" / "train")
        folder(tmp_path / "photos" / "test", 3)
        spoil(root, "dog/030.png")
        config = Config(
            str(tmp_path / "photos"),
            ipc=1,
            effort="smoke",
            image_size=16,
            teachers=("convnet3",),
            teacher_epochs=1,
            steps=4,
            label_epochs=2,
            stream=stream,
            bad_images="quarantine",
        )
        run = distill(config, tmp_path / "run")
        manifest = read_json(run / "manifest.json")
        (left,) = manifest["data"]["left_out"]
        assert left["key"] == "dog/030.png"
        assert "damaged" in left["reason"] or "not a readable" in left["reason"]
        kept = run / "quarantine" / "0000-dog_030.png"
        assert kept.read_bytes() == (root / "dog" / "030.png").read_bytes()
        assert any("left out" in warning for warning in manifest["warnings"])
        assert RunFolder(run).verify() == []
        train(run, students=1)


class TestDuplicates:
    def test_copies_leaks_and_two_labels(self, tmp_path: Path) -> None:
        """Breaks when a test image seen in training, or an image of two classes, goes unsaid."""
        root = folder(tmp_path / "train", 5)
        folder(tmp_path / "test", 0)
        photo(90).save(tmp_path / "test" / "cat" / "own.png")
        photo(91).save(tmp_path / "test" / "dog" / "own.png")
        leak = (root / "cat" / "000.png").read_bytes()
        (tmp_path / "test" / "cat" / "again.png").write_bytes(leak)
        (root / "dog" / "cat.png").write_bytes((root / "cat" / "001.png").read_bytes())
        photo(2).resize((48, 48)).save(tmp_path / "test" / "cat" / "small.jpg", quality=70)
        report = scan(str(tmp_path))
        kinds = {(found["kind"], found["where"]): found for found in report.duplicates}
        leaked = kinds["exact", "training and test"]
        assert leaked["pairs"] == 1
        assert [Path(path).name for path in leaked["first"][0]["paths"]] == ["000.png", "again.png"]
        assert kinds["exact", "training"]["across_classes"] == 1
        (pair,) = kinds["similar", "training and test"]["first"]
        assert [Path(path).name for path in pair["paths"]] == ["002.png", "small.jpg"]
        reasons = " ".join(row["reason"] for row in report.problems)
        assert "which is a training image" in reasons
        assert "of the classes 'cat' and 'dog'" in reasons

    def test_leaks_are_said_when_a_set_is_opened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Breaks when an accuracy on images seen in training passes for one on unseen images."""
        root = folder(tmp_path / "train", 5)
        folder(tmp_path / "test", 2)  # the first two of each class again
        caplog.set_level("WARNING", "reta")
        assert open_source(str(tmp_path), image_size=16).leaked == 4
        assert "4 of 4 test images are training images" in caplog.text
        for path in (tmp_path / "test").rglob("*.png"):
            path.write_bytes(encoded(photo(hash(path.name) % 1000 + 5000)))
        assert open_source(str(tmp_path), image_size=16).leaked == 0
        assert root.is_dir()

    def test_near_pairs_are_those_of_brute_force(self) -> None:
        """Breaks when the bands miss a pair, or bits are counted wrongly."""
        rng = np.random.default_rng(0)
        hashes = []
        for _ in range(20):
            signs = rng.integers(0, 256, 8, dtype=np.uint8)
            greys = rng.normal(0, 40, 256)
            hashes.append(signs.tobytes() + greys.astype(np.int8).tobytes())
            changed = np.unpackbits(signs)
            changed[rng.choice(64, rng.integers(0, 9), replace=False)] ^= 1
            greys += rng.normal(0, rng.choice([2, 12]), 256)
            hashes.append(np.packbits(changed).tobytes() + greys.astype(np.int8).tobytes())

        def alike(a: bytes, b: bytes) -> bool:
            apart = sum((x ^ y).bit_count() for x, y in zip(a[:8], b[:8], strict=True))
            one, other = (np.frombuffer(x[8:], np.int8).astype(float) for x in (a, b))
            return apart <= NEAR and np.corrcoef(one, other)[0, 1] > ALIKE

        every = combinations(enumerate(hashes), 2)
        expected = [(i + 1, j + 1) for (i, a), (j, b) in every if alike(a, b)]
        assert 3 < len(expected) < 15
        assert similar_pairs([None, *hashes, None]) == expected

    def test_hashes_survive_a_resize_and_tell_pictures_apart(self) -> None:
        """Breaks when the hash depends on size or compression, or on nothing at all."""
        pairs = []
        for seed in range(20):
            image = photo(seed, 64)
            content = io.BytesIO()
            image.resize((48, 48)).save(content, "JPEG", quality=60)
            pairs += [
                perceptual_hash(np.asarray(image)),
                perceptual_hash(np.asarray(Image.open(content))),
            ]
        assert similar_pairs(pairs) == [(2 * i, 2 * i + 1) for i in range(20)]
        assert perceptual_hash(np.full((20, 20, 3), 99, np.uint8)) is None


class TestCommand:
    def test_clean_and_with_problems(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Breaks when a script cannot tell a clean set from a bad one."""
        root = folder(tmp_path / "photos", 4)
        cli.main(["scan", str(root), "--json"])
        facts = json.loads(capsys.readouterr().out)
        assert facts["images"] == {"training": 8}
        assert facts["classes"]["cat"] == {"training": 4}
        assert facts["problems"] == []
        spoil(root, "cat/001.png")
        (root / "dog" / "phone.HEIC").write_bytes(b"x")
        with pytest.raises(SystemExit) as caught:
            cli.main(["scan", str(root)])
        assert caught.value.code == 3
        out = capsys.readouterr().out
        assert f"{root / 'cat' / '001.png'}: " in out
        assert "phone.HEIC: not taken for an image" in out
        assert "2 problems" in out
