"""Every label format through a whole run: written, sealed, read back, trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reta
from reta.config import Config
from reta.data.distilled import _teacher
from reta.data.formats import FORMATS, ONLINE, Top, bytes_per_row, label_format
from reta.errors import DataError, UsageError
from reta.executor import Serial
from reta.parts import Job
from reta.pipeline import distill_jobs, keep_config
from reta.preparation import Prepared, open_data, prepare
from reta.runtime import choose_device
from reta.storage import RunFolder
from reta.students import train
from reta.tensors import read_tensors

TINY = Config(
    "digits",
    "random",
    ipc=3,
    classes=3,
    per_class=30,
    teachers=("convnet3", "convnet4"),
    teacher_epochs=2,
    label_epochs=6,
    student="convnet3",
    students=1,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The teachers of all runs, trained once."""
    run = RunFolder(tmp_path_factory.mktemp("teachers"))
    return prepare(TINY, open_data(TINY), run, choose_device("cpu"), Serial())


def distilled(prepared: Prepared, folder: Path, **settings: Any) -> Path:
    """Return a finished run with other settings of its labels."""
    job = Job(folder, replace(prepared.config, **settings))
    keep_config(job.folder, job.config, prepared.source)
    distill_jobs(prepared, [job], Serial())
    return folder


@pytest.fixture(scope="module")
def runs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of the same images and views in every format."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: distilled(prepared, folder / name, label_format=name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_sealed_and_trained_on(name: str, runs: dict[str, Path]) -> None:
    """Breaks when a format is offered that some stage does not know."""
    folder = runs[name]
    data = reta.load(folder)
    assert (data.epochs, data.stored_epochs, len(data)) == (6, 6, 9)
    data.set_epoch(4)
    assert torch.allclose(torch.stack([label.sum() for _, label in data]), torch.ones(9))
    metrics = train(folder)
    assert 0 <= metrics["accuracy"]["last_mean"] <= 1
    assert reta.verify(folder) == []
    tensors, _ = read_tensors(folder / "labels/views-000.safetensors")
    form = label_format(name, 1)
    row = bytes_per_row(form, 3) if form else 0
    assert sum(tensor.nbytes for tensor in tensors.values()) == 6 * 9 * (25 + row)


def test_all_formats_tell_the_same_of_the_same_views(runs: dict[str, Path]) -> None:
    """Breaks when a format changes which views are shown, or mixes rows up."""
    exact = reta.load(runs["float16"], temperature=None)
    for name, error in ((ONLINE, 0.02), ("int8", 0.05), ("int4", 0.6)):
        data = reta.load(runs[name], temperature=None)
        for epoch in (0, 5):
            exact.set_epoch(epoch)
            data.set_epoch(epoch)
            for index in (0, 8, 3):
                view, logits = data[index]
                assert torch.equal(view, exact[index][0])
                torch.testing.assert_close(logits, exact[index][1], rtol=0, atol=error)
    data = reta.load(runs["topk"], temperature=None)
    assert all(int(logits.argmax()) == int(data[i][1].argmax()) for i, (_, logits) in
               enumerate(exact) if not data.set_epoch(5))  # fmt: skip


def test_online_labels_store_teachers_and_no_logits(runs: dict[str, Path]) -> None:
    """Breaks when the set cannot be used without the folder it was made in, or hides its bytes."""
    tensors, _ = read_tensors(runs[ONLINE] / "labels/views-000.safetensors")
    assert set(tensors) == {"order", "boxes", "flips", "partners", "mix_boxes"}
    teachers = sorted(runs[ONLINE].glob("labels/teacher-*.safetensors"))
    assert [read_tensors(path)[1]["architecture"] for path in teachers] == ["convnet3", "convnet4"]
    weights = sum(path.stat().st_size for path in teachers)
    assert train(runs[ONLINE])["bytes_labels"] > weights


def test_pruned_labels_come_again(
    prepared: Prepared, runs: dict[str, Path], tmp_path: Path
) -> None:
    """Breaks when a third of the epochs trains a third as long, or other views are kept."""
    folder = distilled(prepared, tmp_path / "pruned", label_keep=0.34)
    data, every = (reta.load(path, temperature=None) for path in (folder, runs["int8"]))
    assert (data.epochs, data.stored_epochs, every.stored_epochs) == (6, 2, 6)
    for epoch in range(6):
        data.set_epoch(epoch)
        every.set_epoch(epoch % 2)
        assert all(torch.equal(*pair) for pair in zip(data[4], every[4], strict=True))
    assert train(folder)["students"][0]["curve"][-1][0] == 6
    with pytest.raises(UsageError, match="begun with label_keep"):
        distilled(prepared, folder, label_keep=0.5)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.1])
def test_shares_that_make_no_sense(keep: float) -> None:
    """Breaks when nothing, or more than everything, is to be kept."""
    with pytest.raises(UsageError, match="label_keep"):
        replace(TINY, label_keep=keep)


def test_top_logits_are_as_many_as_asked_for(prepared: Prepared, tmp_path: Path) -> None:
    """Breaks when label_top is not heard, or not remembered for reading."""
    folder = distilled(prepared, tmp_path / "run", label_format="topk", label_top=2)
    tensors, facts = read_tensors(folder / "labels/views-000.safetensors")
    assert facts["top"] == 2
    assert tensors["values"].shape == (6, 9, 2)
    assert bytes_per_row(Top(2), 3) == 10
    assert len(reta.load(folder)) == 9


def test_another_set_of_teachers_is_refused(runs: dict[str, Path]) -> None:
    """Breaks when weights of other classes answer in the teachers' place."""
    tensors, facts = read_tensors(runs[ONLINE] / "labels/teacher-00.safetensors")
    with pytest.raises(DataError, match="taught"):
        _teacher(tensors, facts, ("2", "1", "0"), 16, "labels/teacher-00.safetensors")
    tensors.pop("head.weight")
    with pytest.raises(DataError, match="not the weights"):
        _teacher(tensors, facts, ("0", "1", "2"), 16, "labels/teacher-00.safetensors")
