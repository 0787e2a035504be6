"""Sets by name, from small replicas of their files; sets by place that need a library."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from reta.data.named import SETS, SUBSETS
from reta.data.sources import known_names, open_source
from reta.errors import DataError, UsageError

# In every replica image j of a part with label l is flat, with this colour.
TRAIN, TEST = 3, 2


def colour(label: int, index: int, test: bool) -> tuple[int, int, int]:
    return (8 * label + index, 100, 200 + test)


def picture(label: int, index: int, test: bool, side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), colour(label, index, test))


def rows(classes: int, test: bool) -> list[tuple[int, int]]:
    """Return (label, index) of each image, classes by turns as in shuffled files."""
    return [(label, i) for i in range(TEST if test else TRAIN) for label in range(classes)]


def planes(label: int, index: int, test: bool, side: int) -> bytes:
    return b"".join(bytes([value]) * side**2 for value in colour(label, index, test))


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(folder: str, zipped: bool) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / folder).mkdir(parents=True)
        for prefix, test in (("train", False), ("t10k", True)):
            chosen = rows(10, test)
            images = np.stack(
                [np.full((28, 28), colour(*row, test)[0], np.uint8) for row in chosen]
            )
            labels = np.array([label for label, _ in chosen], np.uint8)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                path = root / folder / f"{prefix}-{kind}-ubyte"
                content = idx(array)
                if zipped:
                    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
                else:
                    path.write_bytes(content)

    return write


def cifar10(root: Path) -> None:
    place = root / "cifar-10-batches-bin"
    place.mkdir()
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
    (place / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    train = [bytes([label]) + planes(label, i, False, 32) for label, i in rows(10, False)]
    for batch in range(5):
        (place / f"data_batch_{batch + 1}.bin").write_bytes(
            b"".join(train[6 * batch : 6 * batch + 6])
        )
    test = [bytes([label]) + planes(label, i, True, 32) for label, i in rows(10, True)]
    (place / "test_batch.bin").write_bytes(b"".join(test))


def cifar100(root: Path) -> None:
    place = root / "cifar-100-binary"
    place.mkdir()
    (place / "fine_label_names.txt").write_text("".join(f"fine{i:02d}\n" for i in range(20)))
    for name, test in (("train.bin", False), ("test.bin", True)):
        content = [
            bytes([label // 5, label]) + planes(label, i, test, 32) for label, i in rows(20, test)
        ]
        (place / name).write_bytes(b"".join(content))


def svhn(root: Path) -> None:
    (root / "svhn").mkdir()
    for name, test in (("train", False), ("test", True)):
        chosen = rows(10, test)
        images = np.stack([np.asarray(picture(*row, test)) for row in chosen], axis=3)
        labels = np.array([[label or 10] for label, _ in chosen], np.uint8)
        savemat(root / "svhn" / f"{name}_32x32.mat", {"X": images, "y": labels})


def stl10(root: Path) -> None:
    place = root / "stl10_binary"
    place.mkdir()
    (place / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)))
    for name, test in (("train", False), ("test", True)):
        content = [planes(label, i, test, 96) for label, i in rows(10, test)]
        (place / f"{name}_X.bin").write_bytes(b"".join(content))
        (place / f"{name}_y.bin").write_bytes(bytes(label + 1 for label, _ in rows(10, test)))


def eurosat(root: Path) -> None:
    for label in range(10):
        folder = root / "eurosat" / "2750" / f"Land{label}"
        folder.mkdir(parents=True)
        for i in range(TRAIN + TEST):
            picture(label, i, False, 64).save(folder / f"Land{label}_{i}.jpg", quality=100)


def pets(root: Path) -> None:
    place = root / "oxford-iiit-pet"
    (place / "images").mkdir(parents=True)
    (place / "annotations").mkdir()
    for name, test in (("trainval", False), ("test", True)):
        lines = ["#Image CLASS-ID SPECIES BREED ID"] if not test else []
        for label, i in rows(4, test):
            stem = f"Great_Breed{label}_{i + 10 * test}"
            lines.append(f"{stem} {label + 1} 1 {label + 1}")
            picture(label, i, test).save(place / "images" / f"{stem}.jpg", quality=100)
        (place / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def flowers(root: Path) -> None:
    place = root / "flowers-102"
    (place / "jpg").mkdir(parents=True)
    labels, split = [], {"trnid": [], "valid": [], "tstid": []}
    for label in range(4):
        for i in range(TRAIN + TEST):
            labels.append(label + 1)
            part = "tstid" if i >= TRAIN else "valid" if i == 0 else "trnid"
            split[part].append(len(labels))
            image = picture(label, i - TRAIN * (i >= TRAIN), i >= TRAIN)
            image.save(place / "jpg" / f"image_{len(labels):05d}.jpg", quality=100)
    savemat(place / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(place / "setid.mat", {name: np.array([ids], np.uint16) for name, ids in split.items()})


def tiny_imagenet(root: Path) -> None:
    place = root / "tiny-imagenet-200"
    (place / "val" / "images").mkdir(parents=True)
    (place / "wnids.txt").write_text("n02\nn01\n")
    lines = []
    for label in range(4):
        folder = place / "train" / f"n{label:02d}"
        (folder / "images").mkdir(parents=True)
        (folder / f"n{label:02d}_boxes.txt").write_text("n00_0.JPEG\t0\t0\t62\t62\n")
        for i in range(TRAIN):
            picture(label, i, False, 64).save(
                folder / "images" / f"n{label:02d}_{i}.JPEG", quality=100
            )
    for number, (label, i) in enumerate(rows(4, True)):
        picture(label, i, True, 64).save(
            place / "val" / "images" / f"val_{number}.JPEG", quality=100
        )
        lines.append(f"val_{number}.JPEG\tn{label:02d}\t0\t0\t62\t62")
    (place / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")


REPLICAS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "mnist": (mnist("MNIST/raw", zipped=False), 10, "3"),
    "fashion-mnist": (mnist("FashionMNIST/raw", zipped=True), 10, "dress"),
    "cifar10": (cifar10, 10, "cat"),
    "cifar100": (cifar100, 20, "fine03"),
    "svhn": (svhn, 10, "3"),
    "stl10": (stl10, 10, "thing3"),
    "eurosat": (eurosat, 10, "Land3"),
    "oxford-pets": (pets, 4, "Great_Breed3"),
    "flowers102": (flowers, 4, "004"),
    "tiny-imagenet": (tiny_imagenet, 4, "n03"),
}


@pytest.mark.parametrize("name", REPLICAS)
def test_each_set_is_read_from_its_own_files(name: str, tmp_path: Path) -> None:
    """Breaks when labels are off by one, planes or axes exchanged, or the parts mixed up."""
    write, classes, third = REPLICAS[name]
    write(tmp_path)
    source = open_source(name, root=str(tmp_path), download=False)
    assert source.name == name
    assert len(source.classes) == classes
    assert source.classes[3] == third
    split = name != "eurosat"
    assert (len(source.train), len(source.test)) == (
        classes * (TRAIN if split else 4),
        classes * (TEST if split else 1),
    )
    for test, part in ((False, source.train), (True, source.test)):
        pixels = part.pixels(torch.arange(len(part)))
        assert (pixels.flatten(2).amax(2) - pixels.flatten(2).amin(2)).max() <= 3  # flat
        seen: dict[int, list[int]] = {}
        for image, label in zip(pixels, part.labels.tolist(), strict=True):
            red, green, blue = image[:, 5, 5].tolist()
            index = red - 8 * label
            assert -2 <= index <= 6
            seen.setdefault(label, []).append(index)
            if "mnist" not in name:
                assert abs(green - 100) <= 2
                assert abs(blue - (200 + (test and split))) <= 2
            else:
                assert red == green == blue
        if name in ("mnist", "cifar10", "cifar100", "svhn", "stl10"):
            assert all(sorted(own) == list(range(len(own))) for own in seen.values())
    assert source.flip is (name not in ("mnist", "svhn"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand class folders; folder i is red i % 256, green i // 256."""
    root = tmp_path_factory.mktemp("sets")
    for index in range(1000):
        for part in ("train", "val"):
            folder = root / "imagenet" / part / f"n{1000 + 7 * index:08d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (index % 256, index // 256, 0)).save(folder / "a.png")
    return root


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_are_the_published_classes(name: str, imagenet: Path) -> None:
    """Breaks when positions are counted in another order, or labels follow the folders."""
    source = open_source(name, root=str(imagenet), image_size=32, download=False)
    pixels = source.train.pixels(torch.arange(10))[:, :, 0, 0].tolist()
    found = {
        label: red + 256 * green
        for (red, green, _), label in zip(pixels, source.train.labels.tolist(), strict=True)
    }
    assert tuple(found[label] for label in range(10)) == SUBSETS[name]
    assert source.classes[0] == f"n{1000 + 7 * SUBSETS[name][0]:08d}"
    assert len(source.test) == 10


def test_imagenet_itself_and_a_part_of_it(imagenet: Path, tmp_path: Path) -> None:
    """Breaks when a tree of fewer classes is taken for ImageNet, shifting every position."""
    source = open_source(
        "imagenet-1k", root=str(imagenet), image_size=32, download=False, classes=3
    )
    assert len(source.classes) == 3
    for part in ("train", "val"):
        (tmp_path / "imagenet" / part / "n1").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "imagenet" / part / "n1" / "a.png")
    with pytest.raises(DataError, match="1 class folders, ImageNet-1K has 1000"):
        open_source("imagenette", root=str(tmp_path), download=False)


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the reader of the message has to search the web, or the network is asked."""
    monkeypatch.setenv("RETA_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        open_source(name, download=False)
    said = str(caught.value)
    assert SETS[name].needs in said
    assert str(tmp_path / SETS[name].folders[0]) in said
    assert SETS[name].page in said
    assert name in known_names()


def test_a_failed_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a machine without a network sees a traceback of urllib."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    with pytest.raises(DataError, match=r"downloading failed: no route.*put train\.bin"):
        open_source("cifar100", root=str(tmp_path))


def test_a_download_is_unpacked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when the archive's layout or the folder it is unpacked to is wrong."""
    (tmp_path / "made").mkdir()
    cifar100(tmp_path / "made")

    def fetch(url: str, root: str, md5: str) -> None:
        assert url.endswith("cifar-100-binary.tar.gz")
        assert len(md5) == 32
        with tarfile.open(Path(root) / "cifar-100-binary.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "made" / "cifar-100-binary", "cifar-100-binary")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    source = open_source("cifar100", root=str(tmp_path / "root"))
    assert len(source.train) == 60


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """Breaks when a torn download is a traceback of NumPy."""
    cifar100(tmp_path)
    path = tmp_path / "cifar-100-binary" / "train.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"train\.bin: damaged"):
        open_source("cifar100", root=str(tmp_path), download=False)
    path.unlink()
    with pytest.raises(DataError, match=r"train\.bin: missing"):
        open_source("cifar100", root=str(tmp_path), download=False)


class TestTables:
    def write(self, root: Path, text: str) -> str:
        for label in range(3):
            for i in range(4):
                (root / "my images").mkdir(exist_ok=True)
                picture(label, i, False).save(root / "my images" / f"{label}-{i}.png")
        (root / "set.csv").write_text(text, encoding="utf-8-sig")
        return str(root / "set.csv")

    def test_names_splits_and_order(self, tmp_path: Path) -> None:
        """Breaks when paths do not count from the table, or rows and labels part."""
        lines = ["path,label,split"]
        for i in range(4):
            for label, name in enumerate(("zebra", "ape", "é, x")):
                split = "val" if i == 3 else "train"
                lines.append(f'my images/{label}-{i}.png,"{name}",{split}')
        source = open_source(self.write(tmp_path, "\n".join(lines)))
        assert source.classes == ("ape", "zebra", "é, x")
        assert (len(source.train), len(source.test)) == (9, 3)
        reds = source.train.pixels(torch.arange(9))[:, 0, 0, 0].tolist()
        labels = source.train.labels.tolist()
        assert [(red // 8, label) for red, label in zip(reds, labels, strict=True)] == [
            (0, 1), (1, 0), (2, 2)
        ] * 3  # fmt: skip
        assert source.note == "the split val"

    def test_parquet_of_paths_is_the_same_set(self, tmp_path: Path) -> None:
        """Breaks when the same table in another format is another set."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        lines = ["filename,class"] + [
            f"my images/{c}-{i}.png,{c}" for c in range(3) for i in range(4)
        ]
        one = open_source(self.write(tmp_path, "\n".join(lines)))
        values = [line.split(",") for line in lines[1:]]
        table = {"filename": [v[0] for v in values], "class": [int(v[1]) for v in values]}
        pq.write_table(pa.table(table), tmp_path / "set.parquet")
        assert open_source(str(tmp_path / "set.parquet")).fingerprint == one.fingerprint

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "no rows"),
            ("path,label\n", "no rows"),
            ("a,b\n1,2\n", "one of path, file"),
            ("path,label,split\nx.png,a,late\n", "split 'late'"),
            ("path,label\nmy images/0-0.png\n", "line 2: no label"),
            ("path,label\nmy images/0-0.png,\n", "no label"),
            ("path,label\n" + "nowhere.png,a\n" * 4, "nowhere.png: no such file"),
        ],
    )
    def test_refusals(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=said):
            open_source(self.write(tmp_path, text), image_size=32)


def shard(path: Path, samples: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def png(label: int, index: int) -> bytes:
    content = io.BytesIO()
    picture(label, index, False).save(content, "PNG")
    return content.getvalue()


class TestShards:
    def test_splits_and_names(self, tmp_path: Path) -> None:
        """Breaks when offsets are off, samples cut at shard borders, or labels shifted."""
        for number in range(2):
            samples = []
            for i in range(2):
                for label in range(3):
                    key = f"deep/{number}{i}{label}"
                    samples += [
                        (f"{key}.png", png(label, 2 * number + i)),
                        (f"{key}.cls", b"%d" % label),
                    ]
            shard(tmp_path / f"train-{number:06d}.tar", samples)
        shard(tmp_path / "val-000000.tar", [("a.png", png(1, 7)), ("a.json", b'{"label": 1}')])
        (tmp_path / "classes.json").write_text(json.dumps(["x", "y", "z"]))
        with pytest.raises(DataError, match="no images of 'x', 'z'"):
            open_source(str(tmp_path))  # the validation shard has one class only
        rest = [("b.png", png(0, 7)), ("b.cls", b"0"), ("c.png", png(2, 7)), ("c.cls", b"2")]
        shard(tmp_path / "val-000001.tar", rest)
        source = open_source(str(tmp_path))
        assert source.classes == ("x", "y", "z")
        assert source.note == "the shards val"
        for part, wanted in (
            (source.train, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
            (source.test, [7] * 3),
        ):
            reds = part.pixels(torch.arange(len(part)))[:, 0, 0, 0]
            assert (reds - 8 * part.labels).tolist() == wanted
        streamed = open_source(str(tmp_path), stream=True, workers=2)
        assert torch.equal(
            streamed.train.pixels(torch.arange(12)), source.train.pixels(torch.arange(12))
        )

    def test_names_as_labels_and_half_samples(self, tmp_path: Path) -> None:
        samples = [("a.jpg", b"x"), ("b.cls", b"1"), ("readme.txt", b"hello")]
        for i in range(4):
            samples += [(f"{i}.png", png(0, i)), (f"{i}.cls", b"cat" if i % 2 else b"dog")]
        shard(tmp_path / "all.tar", samples)
        source = open_source(str(tmp_path / "all.tar"))
        assert source.classes == ("cat", "dog")
        assert len(source.train) + len(source.test) == 4

    @pytest.mark.parametrize(
        ("kind", "name", "said"),
        [
            (tarfile.REGTYPE, "../out.png", "points outside"),
            (tarfile.REGTYPE, "/etc/out.png", "points outside"),
            (tarfile.REGTYPE, "a/../../out.png", "points outside"),
            (tarfile.REGTYPE, "a\\..\\out.png", "points outside"),
            (tarfile.SYMTYPE, "link.png", "link or a device"),
            (tarfile.LNKTYPE, "hard.png", "link or a device"),
            (tarfile.CHRTYPE, "null.png", "link or a device"),
            (tarfile.FIFOTYPE, "pipe.png", "link or a device"),
        ],
    )
    def test_hostile_members(self, kind: bytes, name: str, said: str, tmp_path: Path) -> None:
        """Breaks when an archive can make us read, or anyone write, what lies outside it."""
        with tarfile.open(tmp_path / "bad.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DataError, match=said):
            open_source(str(tmp_path / "bad.tar"))
        assert sorted(tmp_path.rglob("*")) == before

    def test_damaged_compressed_and_bombs(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        path.write_bytes(b"no archive at all")
        with pytest.raises(DataError, match="not a readable"):
            open_source(str(path))
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("a.png"))
        with pytest.raises(DataError, match="not compressed"):
            open_source(str(path))
        shard(path, [("a.png", png(0, 0)), ("a.cls", b"0" * (1 << 21))])
        with pytest.raises(DataError, match="2097152 bytes"):
            open_source(str(path))
        shard(path, [("a.png", png(0, 0)), ("a.cls", b"\xff\xfe")])
        with pytest.raises(DataError, match="no readable label"):
            open_source(str(path))


class TestHub:
    datasets = pytest.importorskip("datasets")

    def saved(self, path: Path, count: int = 8, **columns: object) -> str:
        d = self.datasets
        images = [{"bytes": png(i % 2, i), "path": None} for i in range(count)]
        features = d.Features({"img": d.Image(), "label": d.ClassLabel(names=["dog", "cat"])})
        made = d.Dataset.from_dict(
            {"img": images, "label": [i % 2 for i in range(count)]}, features=features
        )
        d.DatasetDict({"train": made, "test": made.select(range(2))}).save_to_disk(str(path))
        return f"hf:{path}"

    def test_a_saved_set(self, tmp_path: Path) -> None:
        """Breaks when images come decoded by another library, or class names are lost."""
        source = open_source(self.saved(tmp_path / "pets"))
        assert source.name == "pets"
        assert source.classes == ("dog", "cat")
        assert (len(source.train), len(source.test)) == (8, 2)
        reds = source.train.pixels(torch.arange(8))[:, 0, 0, 0]
        assert (reds - 8 * source.train.labels).tolist() == list(range(8))
        streamed = open_source(self.saved(tmp_path / "more", 200), stream=True, workers=2)
        assert streamed.train.pixels(torch.arange(200))[150, 0, 0, 0] == 150

    def test_refusals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self.datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
        made.save_to_disk(str(tmp_path / "words"))
        with pytest.raises(DataError, match="has the columns text, label"):
            open_source(f"hf:{tmp_path / 'words'}")
        monkeypatch.setitem(__import__("sys").modules, "datasets", None)
        with pytest.raises(UsageError, match=r"pip install 'reta\[hf\]'"):
            open_source("hf:someone/something")
