"""Every kind of image set, its test part, its selection, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from reta.data.images import DecodedImages, ImageSet
from reta.data.sources import Source, known_names, open_source
from reta.errors import DataError, UsageError

REAL = Path(os.environ.get("RETA_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def picture(value: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (value, 0, 255 - value))


def png(value: int) -> bytes:
    file = BytesIO()
    picture(value).save(file, "PNG")
    return file.getvalue()


def folders(root: Path, classes: Sequence[str], count: int = 5, **sizes: tuple[int, int]) -> Path:
    """Write a class folder per name; image j of class i has red value 10 i + j."""
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j in range(count):
            picture(10 * i + j, **sizes).save(root / name / f"{j}.png")
    return root


def parquet(path: Path, labels: Sequence[int], names: Sequence[str] = (), start: int = 0) -> Path:
    """Write a Parquet file in the Hugging Face layout; row j has red value start + j."""
    images = [{"bytes": png(start + j), "path": f"{j}.png"} for j in range(len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = json.dumps({"info": {"features": features}}) if names else "{}"
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
    return path


def reds(part: ImageSet) -> list[int]:
    return [int(image[0, 0, 0]) for image in part.pixels(torch.arange(len(part)))]


def parts(source: Source) -> tuple[list[int], list[int]]:
    return reds(source.train), reds(source.test)


class TestDigits:
    def test_is_ready_to_use(self) -> None:
        source = open_source("digits")
        assert (len(source.train), len(source.test)) == (1347, 450)
        assert source.train.images.shape[1:] == (3, 16, 16)
        assert source.image_size == 16
        assert source.classes == tuple("0123456789")
        assert not source.flip
        assert "quarter" in source.note
        assert known_names()[0] == "digits"

    def test_test_part_is_stratified_and_has_nothing_of_train(self) -> None:
        source = open_source("digits", image_size=8)
        assert max(len(source.test.of_class(label)) for label in range(10)) <= 46
        assert min(len(source.test.of_class(label)) for label in range(10)) >= 43
        train = {image.numpy().tobytes() for image in source.train.images}
        assert sum(image.numpy().tobytes() in train for image in source.test.images) == 0

    def test_split_is_part_of_the_set(self) -> None:
        assert (
            open_source("digits", seed=0).fingerprint == open_source("digits", seed=9).fingerprint
        )

    def test_eight_px_are_the_sixteen_greys(self) -> None:
        values = set(open_source("digits", image_size=8).train.images.flatten().tolist())
        assert values <= {round(ink * 255 / 16) for ink in range(17)}
        assert {0, 255} <= values


class TestFolder:
    def test_unicode_names_in_order(self, tmp_path: Path) -> None:
        names = ["zebra", "café", "Ä pfel", "🦊 fox", "猫"]
        root = folders(tmp_path / "tiere", [unicodedata.normalize("NFD", name) for name in names])
        source = open_source(str(root))
        assert source.classes == tuple(sorted(names))
        assert source.name == "tiere"
        assert (len(source.train), len(source.test)) == (20, 5)
        assert source.flip
        assert source.note == "a fifth of each class, held out with seed 0"

    @pytest.mark.parametrize("test", ["test", "val", "validation"])
    def test_own_test_part(self, tmp_path: Path, test: str) -> None:
        folders(tmp_path / "train", ["a", "b"], 3)
        folders(tmp_path / test, ["a", "b"], 1)
        source = open_source(str(tmp_path))
        assert parts(source) == ([0, 1, 2, 10, 11, 12], [0, 10])
        assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert source.note == f"the folder {test}/"

    def test_train_without_test_is_split(self, tmp_path: Path) -> None:
        source = open_source(str(folders(tmp_path / "train", ["a", "b"]).parent))
        assert (len(source.train), len(source.test)) == (8, 2)

    def test_classes_may_be_called_train_and_test(self, tmp_path: Path) -> None:
        names = ["car", "test", "train"]
        assert open_source(str(folders(tmp_path, names))).classes == tuple(names)

    def test_split_depends_on_names_and_seed_alone(self, tmp_path: Path) -> None:
        one = open_source(str(folders(tmp_path / "one", ["a", "b", "c"], 9)))
        two = open_source(str(folders(tmp_path / "two", ["a", "b", "c"], 9)))
        assert one.fingerprint == two.fingerprint
        few = open_source(str(tmp_path / "one"), classes=["c"])
        assert set(reds(few.test)) == {red for red in reds(one.test) if red >= 20}
        others = [open_source(str(tmp_path / "one"), seed=seed) for seed in range(1, 5)]
        assert {tuple(reds(other.test)) for other in others} != {tuple(reds(one.test))}

    def test_one_image_stays_in_train(self, tmp_path: Path) -> None:
        source = open_source(str(folders(tmp_path, ["a", "b"], 2)))
        assert (len(source.train), len(source.test)) == (2, 2)
        folders(tmp_path, ["c"], 1)
        source = open_source(str(tmp_path))
        assert len(source.train.of_class(2)) == 1
        assert len(source.test.of_class(2)) == 0

    def test_other_files_are_ignored(self, tmp_path: Path) -> None:
        folders(tmp_path, ["a", "b", ".cache"])
        (tmp_path / "README.md").write_text("about")
        (tmp_path / "a" / "labels.csv").write_text("x")
        (tmp_path / "a" / ".hidden.png").write_text("x")
        (tmp_path / "a" / ".thumbs").mkdir()
        (tmp_path / "a" / ".thumbs" / "0.png").write_text("x")
        source = open_source(str(tmp_path))
        assert source.classes == ("a", "b")
        assert len(source.train) + len(source.test) == 10

    def test_deeper_folders_belong_to_their_class(self, tmp_path: Path) -> None:
        folders(tmp_path / "a", ["images"])
        folders(tmp_path / "b", ["images"])
        assert open_source(str(tmp_path)).classes == ("a", "b")

    @pytest.mark.parametrize(
        ("sides", "size"),
        [
            ((20, 31), 16),
            ((40, 50), 32),
            ((100, 64), 64),
            ((150, 150), 128),
            ((500, 400), 224),
        ],
    )
    def test_natural_size(self, tmp_path: Path, sides: tuple[int, int], size: int) -> None:
        folders(tmp_path, ["a", "b"], 2, size=sides)
        assert open_source(str(tmp_path)).image_size == size

    def test_natural_size_of_some_small_images(self, tmp_path: Path) -> None:
        folders(tmp_path / "train", ["a", "b"], 2, size=(20, 20))
        folders(tmp_path / "test", ["a", "b"], 1)
        assert open_source(str(tmp_path)).image_size == 16
        picture(0, (32, 32)).save(tmp_path / "train" / "a" / "x.png")
        assert open_source(str(tmp_path)).image_size == 32

    def test_size_and_rectangles(self, tmp_path: Path) -> None:
        source = open_source(str(folders(tmp_path, ["a"], 2, size=(50, 30))), image_size=24)
        assert source.train.images.shape == (1, 3, 24, 24)

    def test_empty_class(self, tmp_path: Path) -> None:
        folders(tmp_path, ["a", "b"])
        (tmp_path / "hollow").mkdir()
        with pytest.raises(DataError, match="no images of 'hollow'"):
            open_source(str(tmp_path))
        assert open_source(str(tmp_path), classes=["a", "b"]).classes == ("a", "b")

    @pytest.mark.parametrize("inside", [[], ["test"], ["validation"]])
    def test_no_classes(self, tmp_path: Path, inside: list[str]) -> None:
        for name in inside:
            folders(tmp_path / name, ["a", "b"])
        with pytest.raises(DataError, match="no class folders; expected"):
            open_source(str(tmp_path))

    def test_classes_of_train_and_test_differ(self, tmp_path: Path) -> None:
        folders(tmp_path / "train", ["a", "b"])
        folders(tmp_path / "test", ["a", "c"])
        with pytest.raises(DataError, match="test lacks the class 'b'"):
            open_source(str(tmp_path))

    def test_unreadable_images_are_counted_and_listed(self, tmp_path: Path) -> None:
        folders(tmp_path / "train", ["a", "b"], 8)
        folders(tmp_path / "test", ["a", "b"], 1)
        for j in range(7):
            (tmp_path / "train" / "a" / f"{j}.png").write_bytes(b"no image")
        with pytest.raises(DataError, match="7 of 16 training images cannot be used") as caught:
            open_source(str(tmp_path))
        said = str(caught.value)
        assert all(str(Path("train", "a", f"{j}.png")) in said for j in range(5))
        assert "5.png" not in said

    def test_too_few_to_hold_out(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="add a test set"):
            open_source(str(folders(tmp_path, ["a", "b"], 1)))


class TestNpz:
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 10, 12, 3), np.uint8)
    labels = np.array([0, 1, 2] * 4)

    def write(self, path: Path, **arrays: Any) -> str:
        np.savez(path / "set.npz", **({"images": self.images, "labels": self.labels} | arrays))
        return str(path / "set.npz")

    def test_colour(self, tmp_path: Path) -> None:
        source = open_source(self.write(tmp_path), image_size=10)
        assert source.name == "set"
        assert source.classes == ("0", "1", "2")
        assert sorted(reds(source.train) + reds(source.test)) == list(range(12))

    def test_grey_with_names_and_test(self, tmp_path: Path) -> None:
        source = open_source(
            self.write(
                tmp_path,
                images=self.images[..., 0],
                classes=np.array(["x", "y", "ü"]),
                test_images=self.images[:3, ..., 0] + 100,
                test_labels=[2, 1, 0],
            ),
            image_size=10,
        )
        assert source.classes == ("x", "y", "ü")
        assert parts(source) == (list(range(12)), [100, 101, 102])
        assert source.test.labels.tolist() == [2, 1, 0]
        assert (source.train.images[:, 0] == source.train.images[:, 2]).all()

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"images": np.zeros((12, 8, 8), np.float32)}, "save them as uint8"),
            ({"images": np.zeros((12, 3, 8, 8), np.uint8)}, "save them as uint8"),
            ({"labels": np.zeros(11, np.int64)}, "one integer for each of the 12 images"),
            ({"labels": np.zeros(12)}, "one integer for each"),
            ({"labels": np.full(12, -1)}, "negative"),
            ({"labels": np.full(12, 2)}, "no images of '0', '1'"),
            ({"classes": np.array(["a", "b"])}, "label 2 but only 2 class names"),
            ({"classes": np.array(["a", "b", "b"])}, "same name"),
            ({"classes": np.array(["a", "b", "../c"])}, "cannot name a folder"),
            ({"test_images": np.zeros((2, 8, 8), np.uint8)}, "each of the 2 images"),
            ({"labels": np.array([{}] * 12)}, "without object arrays"),
        ],
    )
    def test_refusals(self, tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
        with pytest.raises(DataError, match=said):
            open_source(self.write(tmp_path, **arrays))

    def test_not_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 torn")
        with pytest.raises(DataError, match="not a readable"):
            open_source(str(tmp_path / "set.npz"))
        with (tmp_path / "set.npz").open("wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(DataError, match="not a readable"):
            open_source(str(tmp_path / "set.npz"))
        np.savez(tmp_path / "set.npz", x=np.zeros(3))
        with pytest.raises(DataError, match="has x; it needs 'images' and 'labels'"):
            open_source(str(tmp_path / "set.npz"))

    def test_damage_is_a_data_error(self, tmp_path: Path) -> None:
        path = tmp_path / "set.npz"
        np.savez_compressed(path, images=self.images, labels=self.labels)
        whole = path.read_bytes()
        for place in range(0, len(whole), 17):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            with contextlib.suppress(DataError):  # some bytes, such as dates, do not matter
                open_source(str(path), image_size=10)


class TestParquet:
    def test_folder(self, tmp_path: Path) -> None:
        parquet(tmp_path / "train.parquet", [1, 0, 1, 0], ["dog", "cat"])
        parquet(tmp_path / "validation.parquet", [0, 1], ["dog", "cat"], start=50)
        source = open_source(str(tmp_path))
        assert source.classes == ("dog", "cat")
        assert parts(source) == ([0, 1, 2, 3], [50, 51])
        assert source.train.labels.tolist() == [1, 0, 1, 0]
        assert source.note == "the split validation"

    def test_shards(self, tmp_path: Path) -> None:
        parquet(tmp_path / "train-00001-of-00002.parquet", [1, 1], ["dog", "cat"], start=20)
        parquet(tmp_path / "train-00000-of-00002.parquet", [0, 0], ["dog", "cat"])
        parquet(tmp_path / "test-00000-of-00001.parquet", [0, 1], ["dog", "cat"])
        assert reds(open_source(str(tmp_path)).train) == [0, 1, 20, 21]

    def test_one_file_without_names(self, tmp_path: Path) -> None:
        source = open_source(str(parquet(tmp_path / "mnist.parquet", [0, 1, 2] * 5)))
        assert source.classes == ("0", "1", "2")
        assert (len(source.train), len(source.test)) == (12, 3)
        assert not source.flip

    def test_only_chosen_rows_are_decoded(self, tmp_path: Path) -> None:
        images = [{"bytes": png(1), "path": ""}] * 4 + [{"bytes": b"bad", "path": ""}]
        table = pa.table({"image": images, "label": [0, 0, 0, 0, 1]})
        pq.write_table(table, tmp_path / "set.parquet")
        assert len(open_source(str(tmp_path / "set.parquet"), classes=1).train) == 3
        with pytest.raises(DataError, match=r"set\.parquet row 4: not a readable"):
            open_source(str(tmp_path / "set.parquet"))

    def test_refusals(self, tmp_path: Path) -> None:
        path = tmp_path / "set.parquet"
        path.write_bytes(b"PAR1 torn")
        with pytest.raises(DataError, match="not a Parquet file"):
            open_source(str(path))
        pq.write_table(pa.table({"img": [1], "label": [0]}), path)
        with pytest.raises(DataError, match="rename the columns"):
            open_source(str(path))
        images = [{"bytes": None, "path": "a.png"}] * 5
        pq.write_table(
            pa.table(
                {
                    "image": pa.array(
                        images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                    ),
                    "label": [0] * 5,
                }
            ),
            path,
        )
        with pytest.raises(DataError, match="embed the images"):
            open_source(str(path))

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = parquet(tmp_path / "set.parquet", [0, 1])
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install 'reta\[parquet\]'"):
            open_source(str(path))

    @pytest.mark.skipif(not REAL.is_dir(), reason="no real sets beside the repository")
    @pytest.mark.parametrize(
        ("name", "size", "third", "flip"),
        [
            ("cifar100", 32, "baby", True),
            ("imagenette128", 128, "cassette_player", True),
            ("fashion_mnist", 32, "pullover", True),
        ],
    )
    def test_real_sets(self, name: str, size: int, third: str, flip: bool) -> None:
        source = open_source(str(REAL / name), classes=3, per_class=20)
        assert source.image_size == size
        assert source.classes[2] == third
        assert source.flip is flip
        assert len(source.train) == 60
        assert len(source.test) >= 300


class TestSelection:
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        folders(tmp_path / "train", ["a", "b", "c"])
        folders(tmp_path / "test", ["a", "b", "c"], 1)
        return str(tmp_path)

    def test_first_classes(self, root: str) -> None:
        assert open_source(root, classes=2).classes == ("a", "b")

    def test_named_classes_are_relabelled_in_their_order(self, root: str) -> None:
        source = open_source(root, classes=["c", "a"], per_class=2)
        assert source.classes == source.test.classes == ("c", "a")
        assert parts(source) == ([0, 1, 20, 21], [0, 20])
        assert source.train.labels.tolist() == [1, 1, 0, 0]
        assert source.train.of_class(0).tolist() == [2, 3]

    def test_other_test_set(self, root: str, tmp_path: Path) -> None:
        parquet(tmp_path / "fresh.parquet", [0, 1, 2], ["c", "b", "a"], start=90)
        source = open_source(root, test=str(tmp_path / "fresh.parquet"))
        assert reds(source.test) == [90, 91, 92]
        assert source.test.labels.tolist() == [2, 1, 0]
        assert source.note == "the set fresh"

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"classes": 4}, "4 classes: .* has 1 to 3"),
            ({"classes": 0}, "1 to 3"),
            ({"classes": ["a", "bb"]}, "'bb' .did you mean 'b'"),
            ({"classes": ["a", "a"]}, "only once"),
            ({"classes": []}, "at least one"),
            ({"per_class": 0}, "at least 1"),
            ({"image_size": 4}, "at least 8 px"),
            ({"test": "nowhere"}, "unknown image set"),
        ],
    )
    def test_refusals(self, root: str, options: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            open_source(root, **options)

    def test_unknown_name(self, root: str) -> None:
        with pytest.raises(
            UsageError, match=r"did you mean 'digits'\?\); choose from: digits, mnist"
        ):
            open_source("digit")
        with pytest.raises(UsageError, match="check the path"):
            open_source(f"{root}/nowhere")
        (Path(root) / "notes.txt").write_text("x")
        with pytest.raises(UsageError, match=r"a \.npz, \.parquet, \.csv or \.tar file"):
            open_source(f"{root}/notes.txt")


class TestFingerprint:
    def test_any_pixel_label_or_name_changes_it(self, tmp_path: Path) -> None:
        images = np.zeros((6, 8, 8), np.uint8)
        labels, names = np.array([0, 1] * 3), np.array(["a", "b"])

        def fingerprint(**changed: Any) -> str:
            arrays = {"images": images, "labels": labels, "classes": names}
            arrays |= {"test_images": images, "test_labels": labels}
            np.savez(tmp_path / "set.npz", **(arrays | changed))
            return open_source(str(tmp_path / "set.npz"), image_size=8).fingerprint

        pixel = images.copy()
        pixel[5, 7, 7] = 1
        seen = [
            fingerprint(),
            fingerprint(images=pixel),
            fingerprint(test_images=pixel),
            fingerprint(labels=labels[::-1]),
            fingerprint(test_labels=labels[::-1]),
            fingerprint(classes=np.array(["a", "c"])),
        ]
        assert len(set(seen)) == len(seen)
        assert fingerprint() == seen[0]


def test_mean_and_std() -> None:
    source = open_source("digits", image_size=8)
    images = source.train.images.double() / 255
    mean, std = source.mean_std
    torch.testing.assert_close(torch.tensor(mean).double(), images.mean((0, 2, 3)))
    wanted = images.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), wanted)


def test_std_of_a_constant_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((4, 8, 8), 51, np.uint8), labels=[0, 0, 1, 1])
    mean, std = open_source(str(tmp_path / "a.npz")).mean_std
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "said"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), ("a",), "uint8"),
        (torch.zeros(2, 3, 8, 9).byte(), torch.zeros(2).long(), ("a",), "uint8"),
        (torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long(), ("a",), "uint8"),
        (torch.zeros(3, 8, 8).byte(), torch.zeros(3).long(), ("a",), "uint8"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2), ("a",), "int64"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(3).long(), ("a",), "int64"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.ones(2).long(), ("a",), "between 0 and 0"),
        (torch.zeros(2, 3, 8, 8).byte(), -torch.ones(2).long(), ("a",), "between 0 and 0"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long(), ("a", "a"), "same name"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long(), ("..",), "folder"),
    ],
)
def test_image_set_checks_itself(
    images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        DecodedImages(images, labels, classes)
