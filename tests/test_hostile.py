"""Files made to harm: images, archives and pickles end in a DataError or UsageError, no worse."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reta import models
from reta.data.intake import read_image
from reta.data.shards import read_shards
from reta.data.sources import open_source
from reta.errors import DataError, RetaError, UsageError
from reta.teachers import adopt
from reta.tensors import read_tensors, tensors_of


def encoded(kind: str) -> bytes:
    """Return an image of one kind, with structure for every part of a decoder to work on."""
    rng = np.random.default_rng(0)
    pixels = (np.indices((40, 52)).sum(0)[:, :, None] * 2 + rng.integers(0, 30, (40, 52, 3))) % 256
    image = Image.fromarray(pixels.astype(np.uint8))
    if kind == "palette":
        image = image.quantize(16)
    if kind == "cmyk":
        image = image.convert("CMYK")
    buffer = io.BytesIO()
    options = {"progressive": {"progressive": True}, "rgba": {}}.get(kind, {})
    image = image.convert("RGBA") if kind == "rgba" else image
    image.save(buffer, "PNG" if kind in ("png", "palette", "rgba") else "JPEG", **options)
    return buffer.getvalue()


def mutated(content: bytes, rng: random.Random) -> bytes:
    broken = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 30))):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    action, place = rng.randrange(4), rng.randrange(len(broken))
    if action == 1:
        del broken[place:]
    if action == 2:
        broken[place:place] = broken[: rng.randrange(200)]
    if action == 3:
        del broken[place : place + rng.randrange(60)]
    return bytes(broken)


def fuzz(times: int, count) -> None:
    rng = random.Random(0)
    originals = [
        encoded(kind) for kind in ("jpeg", "progressive", "cmyk", "png", "palette", "rgba")
    ]
    refused = read = 0
    for number in range(times):
        try:
            pixels = read_image(mutated(originals[number % len(originals)], rng), name="mutated")
        except DataError as error:
            refused += str(error).startswith("mutated: ")
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            read += 1
    assert refused + read == times
    assert refused > times / 4
    count(
        "mutated JPEG and PNG", times, f"{refused} refused by name, the others read, no other end"
    )


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it reads
def test_some_mutated_images(count):
    """Breaks when bytes of an image reach the user as a traceback."""
    fuzz(200, count)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_mutated_images(count):
    """Breaks when bytes of an image reach the user as a traceback."""
    fuzz(2000, count)


def tar_member(name: str, content: bytes = b"0", kind: bytes = tarfile.REGTYPE, **more: object):
    """Return a writer of a shard with two good samples and one member that is not."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for key in "ab":
                for ending, data in (
                    (".png", encoded("png")),
                    (".cls", b"0" if key == "a" else b"1"),
                ):
                    info = tarfile.TarInfo(key + ending)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            for field, value in more.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))

    return write


def zip_bomb(path: Path) -> None:
    """Claim an array of a terabyte in a few bytes."""
    header = str({"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 1)}).encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy + bytes(1_000_000))
        archive.writestr("labels.npy", npy)


def escaping_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.npy", b"\x93NUMPY")


ARCHIVES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "up": ("tar", tar_member("../escaped.png")),
    "deep up": ("tar", tar_member("a/../../escaped.png")),
    "absolute": ("tar", tar_member("/tmp/reta-escaped.png")),
    "backslash": ("tar", tar_member("..\\escaped.png")),
    "symlink": ("tar", tar_member("c.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hardlink": ("tar", tar_member("c.png", kind=tarfile.LNKTYPE, linkname="../a.png")),
    "device": ("tar", tar_member("c.png", kind=tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "pipe": ("tar", tar_member("c.png", kind=tarfile.FIFOTYPE)),
    "nested label": ("tar", tar_member("c.json", b"[" * 50_000)),
    "label of a folder": ("tar", tar_member("b.cls", b"../x")),
    "zip bomb": ("npz", zip_bomb),
    "zip up": ("npz", escaping_zip),
}


def test_hostile_archives(tmp_path, count):
    """Breaks when an archive writes outside, hangs, or ends in a traceback."""
    tar_member("c.txt")(tmp_path / "good.tar")
    assert len(read_shards(tmp_path / "good.tar").train.labels) == 2
    (tmp_path / "good.tar").unlink()
    for name, (ending, write) in ARCHIVES.items():
        folder = tmp_path / "in" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        path = folder / f"train.{ending}"
        write(path)
        with pytest.raises((DataError, UsageError)):
            open_source(str(path))
        assert [p.name for p in folder.iterdir()] == [path.name]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert not Path("/tmp/reta-escaped.png").exists()
    count("hostile archives", len(ARCHIVES), "refused, nothing written outside")


class Payload:
    """An object that runs a function when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(marker: Path) -> dict[str, object]:
    touch = f"open({str(marker)!r}, 'w')"
    return {
        "system": Payload(os.system, f"touch {marker}"),
        "eval": Payload(eval, touch),
        "exec": Payload(exec, touch),
        "nested": {"state_dict": {"weight": [Payload(eval, touch)]}},
        "array": np.array([Payload(eval, touch)], dtype=object),
        "getattr": Payload(Path.touch, marker),
    }


def loaders(data: bytes, value: object, folder: Path) -> dict[str, Callable[[], object]]:
    """Return every way a file of the user or of a stranger is read, given a pickle in it."""
    for name in ("teacher.pt", "teacher.safetensors", "set.npz", "set.parquet", "image.png"):
        (folder / name).write_bytes(data)
    torch.save({"state_dict": value}, folder / "zipped.pt")
    objects = np.empty(4, dtype=object)
    objects[:] = [value] * 4
    np.savez(folder / "objects.npz", images=objects, labels=objects, allow_pickle=True)

    def teacher(name: str, trusted: bool) -> Callable[[], object]:
        return lambda: adopt(
            folder / name,
            folder / "out.safetensors",
            architecture="convnet3",
            classes=("a", "b"),
            image_size=16,
            normalization="imagenet",
            allow_pickle=trusted,
        )

    return {
        "weights": teacher("teacher.pt", False),
        "weights, allowed": teacher("teacher.pt", True),
        "zipped weights": teacher("zipped.pt", False),
        "zipped weights, allowed": teacher("zipped.pt", True),
        "weights named safetensors": teacher("teacher.safetensors", False),
        "teacher file": lambda: models.read(folder / "teacher.pt"),
        "tensors": lambda: read_tensors(folder / "teacher.safetensors"),
        "kept state": lambda: tensors_of(data, "state"),
        "npz": lambda: open_source(str(folder / "set.npz")),
        "npz of objects": lambda: open_source(str(folder / "objects.npz")),
        "parquet": lambda: open_source(str(folder / "set.parquet")),
        "image": lambda: read_image(folder / "image.png"),
    }


def test_no_pickle_is_ever_executed(tmp_path, count):
    """Breaks when any way of reading a file runs the code that hides in it."""
    marker, tried = tmp_path / "executed", 0
    kinds = payloads(marker)
    for name, value in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        data = pickle.dumps(value)
        for load in loaders(data, value, folder).values():
            with pytest.raises(RetaError):
                load()
            assert not marker.exists()
            tried += 1
    pickle.loads(pickle.dumps(kinds["eval"])).close()
    assert marker.exists()  # so the payloads do work where pickles are trusted
    count("pickle payloads", len(kinds), f"none executed in {tried} attempts to load them")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 10**12),
        struct.pack("<Q", 2) + b"{}" + b"more than the header says",
        b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,400]}}',
        b'{"x":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
        b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"y":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}',
        b'{"__metadata__":{"facts":"' + b"[" * 20_000 + b'"}}',
        b"[" * 50_000,
    ],
)
def test_a_header_that_lies(header, tmp_path):
    """Breaks when a forged safetensors file reads beyond its end, or ends in a traceback."""
    path = tmp_path / "x.safetensors"
    is_json = header[:1] in (b"{", b"[")
    path.write_bytes((struct.pack("<Q", len(header)) if is_json else b"") + header + bytes(16))
    with pytest.raises(DataError):
        read_tensors(path)


def test_a_config_cannot_run_code(tmp_path):
    """Breaks when YAML tags construct objects, or aliases without end fill the memory."""
    from reta.config import from_yaml

    marker = tmp_path / "executed"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    tricks = {
        "tag": f"data: !!python/object/apply:os.system ['touch {marker}']",
        "aliases": bomb,
        "depth": "[" * 900,
        "list": json.dumps(["data"]),
        "binary": "\x00",
    }
    for name, text in tricks.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        with pytest.raises(UsageError):
            from_yaml(path)
    assert not marker.exists()
