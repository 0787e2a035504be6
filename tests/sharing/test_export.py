"""Every export is read back by the library it is for, and holds what the run holds."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import reta
from reta.cli import sharing
from reta.data.distilled import DistilledSet
from reta.errors import DataError, UsageError
from reta.sharing import FORMATS, export
from reta.sharing.export import mean_labels


@pytest.fixture(scope="module")
def data(shared_run: Path) -> DistilledSet:
    return reta.load(shared_run)


@pytest.fixture(scope="module")
def exported(shared_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("exports")
    return {form: export(shared_run, form, room / form) for form in FORMATS}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_carries_names_normalisation_views_and_card(
    exported: dict[str, Path], shared_run: Path, form: str
) -> None:
    """A format that loses the class order, the statistics, the views, or where it comes from."""
    out = exported[form]
    facts = json.loads((out / "dataset.json").read_text())
    manifest = json.loads((shared_run / "manifest.json").read_text())
    assert facts["classes"] == manifest["classes"] == ["cat & <dog>", "fish", 'owl, "grey"']
    assert (facts["mean"], facts["std"]) == (manifest["data"]["mean"], manifest["data"]["std"])
    assert "TO FILL IN" in (out / "README.md").read_text()
    for path in (shared_run / "labels").iterdir():
        assert (out / "labels" / path.name).read_bytes() == path.read_bytes()


def test_torchvision_reads_the_image_folder(exported: dict[str, Path], data: DistilledSet) -> None:
    """Folders whose sorted names are not in the order of the labels, or changed pixels."""
    found = ImageFolder(str(exported["imagefolder"] / "images"), transform=pil_to_tensor)
    assert [label for _, label in found.samples] == data.labels.tolist()
    assert torch.equal(torch.stack([image for image, _ in found]), data.images)
    soft = load_file(exported["imagefolder"] / "soft_labels.safetensors")["soft_labels"]
    assert torch.equal(soft, mean_labels(data))


def test_numpy_reads_the_npz(exported: dict[str, Path], data: DistilledSet) -> None:
    """An array that needs pickle, channels in another place, or labels without their views."""
    with np.load(exported["npz"] / "distilled.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"].transpose(0, 3, 1, 2), data.images.numpy())
        assert arrays["labels"].tolist() == data.labels.tolist()
        assert tuple(arrays["classes"].tolist()) == data.classes
        assert arrays["soft_labels"].sum(axis=1) == pytest.approx(np.ones(len(data)), abs=1e-5)
        assert {"views-000.order", "views-000.boxes", "mean", "std"} <= set(arrays.files)


def test_safetensors_reads_the_tensors(exported: dict[str, Path], data: DistilledSet) -> None:
    """A tensor file without the facts needed to use it."""
    path = exported["safetensors"] / "distilled.safetensors"
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("images"), data.images)
        assert torch.equal(file.get_tensor("labels"), data.labels)
        assert json.loads(file.metadata()["facts"])["classes"] == list(data.classes)


# The library leaves its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_tar(exported: dict[str, Path], data: DistilledSet) -> None:
    """Parts of a sample that do not find each other, or a label of the wrong type."""
    webdataset = pytest.importorskip("webdataset")
    url = str(exported["webdataset"] / "distilled-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("pil"))
    assert len(samples) == len(data)
    for index, sample in enumerate(samples):
        assert torch.equal(pil_to_tensor(sample["png"]), data.images[index])
        assert sample["cls"] == data.labels[index]
        assert sample["json"]["class"] == data.classes[sample["cls"]]
        assert sample["soft.npy"] == pytest.approx(mean_labels(data)[index].numpy())
    gc.collect()


def test_hugging_face_reads_the_folder(
    exported: dict[str, Path], data: DistilledSet, tmp_path: Path
) -> None:
    """A card whose configuration names other files, or names that are not the labels'."""
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(exported["hf"]), cache_dir=str(tmp_path))["train"]
    assert found.features["label"].names == list(data.classes)
    assert found["label"] == data.labels.tolist()
    images = torch.stack([pil_to_tensor(image.convert("RGB")) for image in found["image"]])
    assert torch.equal(images, data.images)
    assert torch.allclose(torch.tensor(found["soft_label"]), mean_labels(data))


def test_the_run_itself_is_a_hugging_face_folder(
    shared_run: Path, data: DistilledSet, tmp_path: Path
) -> None:
    """A pushed run whose viewer shows evolution sheets, or has lost the classes."""
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(shared_run), cache_dir=str(tmp_path))["train"]
    assert len(found) == len(data)
    assert found["label"] == data.labels.tolist()


def test_dd_ranking_layout(exported: dict[str, Path], data: DistilledSet) -> None:
    """Tensors that are not class-major, not normalised, or labels a softmax would spoil.

    Its evaluators take ``image_tensor`` (classes·ipc, 3, h, w) with label i // ipc, or an
    ImageFolder; its soft-label losses take a softmax of the labels.
    """
    out, ipc = exported["dd-ranking"], 2
    tensors = load_file(out / "distilled.safetensors")
    with safe_open(out / "distilled.safetensors", framework="pt") as file:
        used = json.loads(file.metadata()["facts"])["normalised_with"]
    mean, std = (torch.tensor(used[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    pixels = (tensors["image_tensor"] * std + mean) * 255
    assert torch.allclose(pixels, data.images.float(), atol=1e-3)
    assert tensors["hard_labels"].tolist() == [index // ipc for index in range(len(data))]
    assert torch.allclose(tensors["soft_labels"].softmax(1), mean_labels(data), atol=1e-5)
    found = ImageFolder(str(out / "images"), transform=pil_to_tensor)
    assert found.classes == ["00000", "00001", "00002"]
    assert torch.equal(torch.stack([image for image, _ in found]), data.images)


def test_the_label_of_an_image_is_the_weighted_mean_of_its_views(data: DistilledSet) -> None:
    """A view counted for the image at its position and not for the one shown there."""
    size = data.images.shape[-1]
    for image in range(len(data)):
        total, weight = torch.zeros(len(data.classes)), 0.0
        for epoch in range(data.epochs):
            data.set_epoch(epoch)
            shown = data.views(epoch)
            for position in range(len(data)):
                if shown.order[position] == image:
                    _, _, height, width = shown.mix.boxes[position].tolist()
                    share = 1 - height * width / size**2
                    total += share * data[position][1]
                    weight += share
        assert torch.allclose(mean_labels(data)[image], total / weight, atol=1e-5)


def test_what_is_there_is_never_overwritten(shared_run: Path, tmp_path: Path) -> None:
    """An export over somebody's files, or over half of another export."""
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="new --out"):
        export(shared_run, "npz", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_export_leaves_nothing(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that looks like a whole export and is not."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "npz", ("", fail))
    with pytest.raises(KeyboardInterrupt):
        export(shared_run, "npz", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_why(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback where a sentence would do."""
    with pytest.raises(UsageError, match="did you mean 'npz'"):
        export(shared_run, "npx", tmp_path / "out")
    with pytest.raises(DataError):
        export(tmp_path, "npz", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'reta\[hf\]'"):
        export(shared_run, "hf", tmp_path / "out")


def test_the_command_knows_every_format() -> None:
    """A format that exists and cannot be chosen."""
    assert set(sharing.Format.__args__) == set(FORMATS)
