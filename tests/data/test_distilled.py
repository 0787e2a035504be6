"""A distilled set read back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from reta.data.distilled import DistilledSet, image_name, load, read_images
from reta.data.formats import Halves
from reta.data.labels import LabelShard, draw_epoch
from reta.errors import DataError, UsageError
from reta.storage import RunFolder
from reta.tensors import png_bytes, read_tensors, tensor_bytes

CLASSES = ("zebra", "ant", "owl")
IPC, SIZE = 7, 10


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(CLASSES), IPC, 3, SIZE, SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def shards() -> list[LabelShard]:
    count = len(CLASSES) * IPC
    generator = torch.Generator().manual_seed(1)
    return [
        LabelShard(
            [draw_epoch(0, epoch, count, SIZE, (0.08, 1.0), True) for epoch in span],
            torch.randn(len(span), count, len(CLASSES), generator=generator),
        )
        for span in (range(2), range(2, 3))
    ]


def data(temperature: float | None = 1.0) -> DistilledSet:
    labels = torch.arange(len(CLASSES)).repeat_interleave(IPC)
    return DistilledSet(pixels().flatten(0, 1), labels, CLASSES, shards(), temperature)


def write_run(
    folder: Path,
    *,
    label_classes: tuple[str, ...] = CLASSES,
    labels: bool = True,
    mean: tuple[float, ...] = (0.5, 0.4, 0.3),
) -> Any:
    run = RunFolder(folder)
    unit = run.unit("recover-000", {"made": "by hand"})
    for name, own in zip(CLASSES, pixels(), strict=True):
        for index, image in enumerate(own):
            unit.write(image_name(name, index), png_bytes(image))
    unit.finish()
    for number, shard in enumerate(shards() if labels else []):
        unit = run.unit(f"labels-{number:03d}", {})
        facts = {"classes": label_classes, "format": "float16", "mean": (0.5, 0.4, 0.3)}
        file = tensor_bytes(shard.tensors(Halves()), facts)
        unit.write(f"labels/views-{number:03d}.safetensors", file)
        unit.finish()
    data = {"mean": list(mean)}
    run.seal({"classes": list(CLASSES), "folders": list(CLASSES), "ipc": IPC, "data": data})
    return run


def test_items_are_what_batches_yield() -> None:
    """Two ways to read one set that disagree on views or labels."""
    one = data(temperature=None)
    for epoch in range(one.epochs):
        one.set_epoch(epoch)
        position = 0
        for batch in one.batches(epoch, torch.device("cpu")):
            for views, logits in batch:
                for view, row in zip(views, logits, strict=True):
                    alone, label = one[position]
                    torch.testing.assert_close(alone, view, rtol=0, atol=1e-6)
                    assert torch.equal(label, row)
                    position += 1
        assert position == len(one) == 21


def test_batches_keep_the_micro_batches_of_the_teachers() -> None:
    """Students must see the halves of eight whose statistics the labels were made with."""
    sizes = [[len(views) for views, _ in batch] for batch in data().batches(0, torch.device("cpu"))]
    assert sizes == [[8, 8], [5]]


def test_epochs_run_through_all_shards_and_begin_again() -> None:
    """Epochs lost between shards, or an index error after the last."""
    one = data(temperature=None)
    assert one.epochs == 3
    logits = torch.cat([shard.logits for shard in shards()])
    for epoch, stored in ((0, 0), (2, 2), (3, 0), (7, 1)):
        one.set_epoch(epoch)
        assert torch.equal(one[4][1], logits[stored, 4])
        (_, batch_logits), *_ = next(one.batches(epoch, torch.device("cpu")))
        assert torch.equal(batch_logits, logits[stored, :8])


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_labels_are_a_softmax_at_the_temperature(temperature: float) -> None:
    """Logits divided by the temperature twice, or after the softmax."""
    label = data(temperature)[3][1]
    logits = shards()[0].logits[0, 3].double()
    expected = (logits / temperature).exp() / (logits / temperature).exp().sum()
    torch.testing.assert_close(label.double(), expected, rtol=0, atol=1e-6)


def test_it_behaves_like_a_sequence() -> None:
    """Without an IndexError past the end a plain `for` would never stop."""
    one = data()
    assert sum(1 for _ in one) == 21
    assert torch.equal(one[-1][0], one[20][0])
    for index in (21, -22):
        with pytest.raises(IndexError):
            one[index]
    batches = list(DataLoader(one, batch_size=8))
    assert [len(views) for views, _ in batches] == [8, 8, 5]
    assert all(0 <= views.min() <= views.max() <= 1 for views, _ in batches)


def test_a_run_folder_is_read_back(tmp_path: Path) -> None:
    """Images in another order than their labels, or shards in another order than their epochs."""
    write_run(tmp_path)
    one = load(tmp_path, temperature=None)
    assert torch.equal(one.images, pixels().flatten(0, 1))
    assert one.labels.tolist() == [0] * IPC + [1] * IPC + [2] * IPC
    assert one.classes == CLASSES
    expected = torch.cat([shard.logits for shard in shards()]).half().float()
    for epoch in range(3):
        one.set_epoch(epoch)
        assert torch.equal(one[0][1], expected[epoch, 0])
    assert torch.equal(read_images(tmp_path, CLASSES, IPC), pixels())


@pytest.mark.parametrize(
    "name", ["images/ant/003.png", "labels/views-001.safetensors", "labels/views-000.safetensors"]
)
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damage_is_never_trained_on(tmp_path: Path, name: str, damage: str) -> None:
    """A flipped bit or a lost file that goes into training unnoticed."""
    write_run(tmp_path)
    path = tmp_path / name
    if damage == "remove":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        load(tmp_path)


def test_labels_of_other_classes_are_refused(tmp_path: Path) -> None:
    """Class orders that differ between labels and images: the classic silent failure."""
    write_run(tmp_path, label_classes=("ant", "owl", "zebra"))
    with pytest.raises(DataError, match="labels are for"):
        load(tmp_path)


def test_labels_of_another_normalisation_are_refused(tmp_path: Path) -> None:
    """Teachers that were shown other numbers than the manifest tells a student to use."""
    write_run(tmp_path, mean=(0.5, 0.4, 0.31))
    with pytest.raises(DataError, match=r"\[0\.5, 0\.4, 0\.3\], these have \[0\.5, 0\.4, 0\.31\]"):
        load(tmp_path)


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    """No labels or no manifest: an error that says what to do, not a traceback."""
    with pytest.raises(DataError, match="no run folder of reta"):
        load(tmp_path)
    (tmp_path / "units").mkdir()
    with pytest.raises(DataError, match="the same `reta distill` again finishes it"):
        load(tmp_path)
    write_run(tmp_path, labels=False)
    with pytest.raises(DataError, match="no labels"):
        load(tmp_path)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperatures_are_positive(tmp_path: Path, temperature: float) -> None:
    """Division by zero, or labels turned upside down."""
    write_run(tmp_path)
    with pytest.raises(UsageError, match="temperature"):
        load(tmp_path, temperature)


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    """Facts must keep their types and non-ASCII names; views of one tensor must not be refused."""
    base = torch.arange(12.0).view(3, 4)
    facts = {"classes": ["Äpfel", "梨"], "epochs": 3, "nested": {"a": None}}
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes({"all": base, "column": base[:, 1]}, facts))
    tensors, back = read_tensors(path)
    assert back == facts
    assert torch.equal(tensors["all"], base)
    assert torch.equal(tensors["column"], base[:, 1])


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 100])
def test_damaged_tensor_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or cut file must be a DataError that names it."""
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.safetensors"):
        read_tensors(path)
