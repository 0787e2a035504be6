"""A distilled set read back from its folder, ready to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from reta.data.intake import read_image
from reta.data.labels import Epoch, LabelShard, micro_batches
from reta.errors import DataError, UsageError
from reta.storage import RunFolder, sha256
from reta.tensors import read_tensors

MicroBatch = tuple[torch.Tensor, torch.Tensor]


class DistilledSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The images of a distilled set, shown as the augmented views that were labelled.

    ``len()`` is the number of synthetic images. In each epoch every image is shown once, as another
    view with its own soft label; call `set_epoch` before each epoch, and read in order (a
    ``DataLoader`` without shuffling), because the order of each epoch is itself recorded::

        data = reta.load("runs/photos")
        for epoch in range(data.epochs):
            data.set_epoch(epoch)
            for views, labels in DataLoader(data, batch_size=8):
                loss = cross_entropy(model(views), labels)

    Attributes:
        images: ``(n, 3, s, s)`` uint8, class by class.
        labels: ``(n,)`` int64 hard labels.
        classes: names, in the order of the labels.
        epochs: how many epochs of soft labels are stored.
        temperature: of the softmax that turns logits into soft labels; None gives the logits.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        classes: tuple[str, ...],
        shards: list[LabelShard],
        temperature: float | None = 1.0,
    ) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        self.temperature = temperature
        self._epochs: list[Epoch] = [epoch for shard in shards for epoch in shard.epochs]
        self._logits = torch.cat([shard.logits for shard in shards])
        self._epoch = 0

    @property
    def epochs(self) -> int:
        """How many epochs of soft labels are stored."""
        return len(self._epochs)

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose views and labels are shown; beyond the last, begin again."""
        self._epoch = epoch % self.epochs

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the view ``(3, s, s)`` in [0, 1] and the soft label ``(classes,)``."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        position = torch.tensor([index % len(self)])
        view = self._epochs[self._epoch].render(self.images, position)[0]
        logits = self._logits[self._epoch, position[0]]
        if self.temperature is None:
            return view, logits
        return view, (logits / self.temperature).softmax(dim=0)

    def batches(self, epoch: int, device: torch.device) -> Iterator[list[MicroBatch]]:
        """Yield the batches of an epoch, each as micro-batches of views and teacher logits."""
        epoch %= self.epochs
        shown, logits = self._epochs[epoch], self._logits[epoch].to(device)
        images = self.images.to(device)
        for batch in micro_batches(len(self)):
            positions = torch.arange(batch[0].start, batch[-1].stop)
            views = shown.render(images, positions)
            start = batch[0].start
            yield [(views[part.start - start : part.stop - start], logits[part]) for part in batch]


def run_manifest(run: RunFolder) -> dict[str, Any]:
    """Return the manifest of a folder that holds one distilled set.

    Raises:
        DataError: if it holds several, naming them, or none.
    """
    manifest = run.manifest()
    if "classes" not in manifest:
        names = ", ".join(name for names in manifest.get("runs", {}).values() for name in names)
        raise DataError(f"{run.path} is a comparison; choose one of its runs: {names}")
    return manifest


def load(folder: str | Path, temperature: float | None = 1.0) -> DistilledSet:
    """Return the distilled set in a run folder as a dataset of views and soft labels.

    Every file is compared with the manifest as it is read, so a damaged one is never trained on.

    Args:
        folder: written by ``reta distill``.
        temperature: of the softmax that turns logits into soft labels; None gives the logits.

    Raises:
        DataError: if the folder is no finished run, or a file is missing or was changed.
    """
    run = RunFolder(folder)
    if temperature is not None and temperature <= 0:
        raise UsageError(f"temperature is {temperature}; it must be above 0, or None for logits")
    manifest = run_manifest(run)
    classes = tuple(manifest["classes"])

    def intact(name: str) -> Path:
        path = run.path / name
        if name not in manifest["files"] or not path.is_file():
            raise DataError(f"{path}: missing; run `reta verify {run.path}`")
        if sha256(path.read_bytes()) != manifest["files"][name]:
            raise DataError(f"{path}: changed after it was written; distil it again")
        return path

    folders, ipc = manifest["folders"], manifest["ipc"]
    for folder_name in folders:
        for index in range(ipc):
            intact(image_name(folder_name, index))
    images = read_images(run.path, folders, ipc).flatten(0, 1)
    labels = torch.arange(len(folders)).repeat_interleave(ipc)
    shards = []
    for name in sorted(name for name in manifest["files"] if name.startswith("labels/")):
        tensors, facts = read_tensors(intact(name))
        if tuple(facts["classes"]) != classes:
            raise DataError(f"{name}: labels are for {facts['classes']}, images for {classes}")
        shards.append(LabelShard.from_tensors(tensors))
    if not shards:
        raise DataError(f"{run.path}: no labels; run `reta distill` again to finish it")
    return DistilledSet(images, labels, classes, shards, temperature)


def read_images(folder: Path, class_folders: Sequence[str], ipc: int) -> torch.Tensor:
    """Return the synthetic images of a run folder, ``(classes, ipc, 3, s, s)`` uint8."""
    rows = [
        [torch.from_numpy(read_image(folder / image_name(name, i)).copy()) for i in range(ipc)]
        for name in class_folders
    ]
    return torch.stack([torch.stack(row) for row in rows]).permute(0, 1, 4, 2, 3).contiguous()


def image_name(folder: str, index: int) -> str:
    """Return the path of a synthetic image inside its run folder."""
    return f"images/{folder}/{index:03d}.png"
