"""A distilled set read back from its folder, ready to train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from reta.committee import committee_logits
from reta.data.intake import read_image
from reta.data.labels import BATCH, Epoch, Labels, StoredShard, micro_batches
from reta.errors import DataError, RetaError, UsageError
from reta.models import Classifier, build, freeze, preferred_layout
from reta.runtime import images_per_pass
from reta.storage import MANIFEST, RunFolder, sha256
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
        temperature: of the softmax that turns logits into soft labels; None gives the logits.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        classes: tuple[str, ...],
        shards: Sequence[Labels],
        temperature: float | None = 1.0,
        *,
        epochs: int | None = None,
        teachers: Sequence[Classifier] = (),
    ) -> None:
        """Put a set together; `load` does it from a run folder.

        Args:
            images: ``(n, 3, s, s)`` uint8, class by class.
            labels: ``(n,)`` int64.
            classes: names.
            shards: labelled views.
            temperature: of the softmax; None gives the logits.
            epochs: students are to train for; as many as are stored by default.
            teachers: who answers while students train, if the shards hold no logits.
        """
        self.images, self.labels, self.classes = images, labels, classes
        self.temperature = temperature
        self._resident = images
        self._stored = [(shard, index) for shard in shards for index in range(len(shard))]
        self._epochs = epochs or len(self._stored)
        self._teachers = teachers
        self._epoch = 0
        # What `__getitem__` made last: the views of an epoch and the labels of a micro-batch.
        self._shown: tuple[int, Epoch] | None = None
        self._said: tuple[int, slice, torch.Tensor] | None = None

    @property
    def epochs(self) -> int:
        """How many epochs students are to train for; fewer may be stored, and come again."""
        return self._epochs

    @property
    def stored_epochs(self) -> int:
        """How many epochs of labelled views are stored."""
        return len(self._stored)

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose views and labels are shown; beyond the last, begin again."""
        self._epoch = epoch % self.stored_epochs

    def views(self, epoch: int) -> Epoch:
        """Return how the images are shown in an epoch; beyond the last, begin again."""
        shard, number = self._stored[epoch % self.stored_epochs]
        return shard.epoch(number)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the view ``(3, s, s)`` in [0, 1] and the soft label ``(classes,)``."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        position = index % len(self)
        if self._shown is None or self._shown[0] != self._epoch:
            shard, number = self._stored[self._epoch]
            self._shown = self._epoch, shard.epoch(number)
        view = self._shown[1].render(self.images, torch.tensor([position]))[0]
        logits = self._logits_at(self._shown[1], position)
        if self.temperature is None:
            return view, logits
        return view, (logits / self.temperature).softmax(dim=0)

    def _logits_at(self, shown: Epoch, position: int) -> torch.Tensor:
        """Return the logits of one view; teachers that answer see its whole micro-batch."""
        said = self._said
        if said is None or said[0] != self._epoch or not said[1].start <= position < said[1].stop:
            parts = [part for batch in micro_batches(len(self)) for part in batch]
            (part,) = (part for part in parts if part.start <= position < part.stop)
            shard, number = self._stored[self._epoch]
            if self._teachers:
                views = shown.render(self.images, torch.arange(part.start, part.stop))
                logits = self._ask(views, [part])
            else:
                logits = shard.decode(number, part)
            said = self._said = self._epoch, part, logits
        return said[2][position - said[1].start]

    def _ask(self, views: torch.Tensor, parts: Sequence[slice]) -> torch.Tensor:
        teachers = [teacher.to(views.device) for teacher in self._teachers]
        return committee_logits(teachers, views, [part.stop - part.start for part in parts])

    def batches(
        self, epoch: int, device: torch.device, kind: Literal["soft", "hard", "both"] = "soft"
    ) -> Iterator[list[MicroBatch]]:
        """Yield the batches of an epoch, each as micro-batches of views and targets.

        Args:
            epoch: beyond the last stored one, the stored ones come again.
            device: for views and targets.
            kind: what the targets ``(m, classes)`` are: teacher logits (soft), the classes of the
                image and of its CutMix partner as probabilities (hard), or both side by side,
                ``(m, 2·classes)``.
        """
        shard, number = self._stored[epoch % self.stored_epochs]
        shown, images = shard.epoch(number), self._on(device)
        classes, size = len(self.classes), images.shape[-1]
        batches = micro_batches(len(self))
        # Many batches are drawn at once: for one of 16 the calls would cost more than the work.
        at_once = max(1, images_per_pass(size, device) // BATCH)
        for some in (batches[i : i + at_once] for i in range(0, len(batches), at_once)):
            whole = slice(some[0][0].start, some[-1][-1].stop)
            positions = torch.arange(whole.start, whole.stop)
            views = shown.render(images, positions)
            kinds = []
            if kind != "hard" and self._teachers:
                kinds.append(self._ask(views, [part for batch in some for part in batch]))
            elif kind != "hard":
                kinds.append(shard.decode(number, whole).to(device))
            if kind != "soft":
                hard = shown.hard_targets(self.labels, positions, classes, size)
                kinds.append(hard.to(device))
            targets = torch.cat(kinds, dim=1)
            for batch in some:
                own = [slice(part.start - whole.start, part.stop - whole.start) for part in batch]
                yield [(views[part], targets[part]) for part in own]

    def _on(self, device: torch.device) -> torch.Tensor:
        """Return the images on a device, where they stay: they are few."""
        if self._resident.device != device:
            self._resident = self.images.to(device)
        return self._resident


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

    own = ("images/", "labels/")
    run.bring({name: digest for name, digest in manifest["files"].items() if name.startswith(own)})

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
    shards: list[Labels] = []
    teachers = []
    size = images.shape[-1]
    for name in sorted(name for name in manifest["files"] if name.startswith("labels/")):
        path = intact(name)
        tensors, facts = read_tensors(path)
        if name.startswith(_TEACHER):
            teachers.append(_teacher(tensors, facts, classes, size, name))
        else:
            shards.append(StoredShard.read(tensors, facts, classes, len(images), name))
            _check_normalisation(name, facts, manifest.get("data", {}))
    if not shards:
        raise DataError(f"{run.path}: no labels; run `reta distill` again to finish it")
    return DistilledSet(
        images,
        labels,
        classes,
        shards,
        temperature,
        epochs=manifest.get("label_epochs"),
        teachers=teachers,
    )


def _check_normalisation(where: str, labels: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Compare what the labels' teachers were shown with what the manifest says of the images."""
    for name in ("mean", "std"):
        theirs, ours = labels.get(name), data.get(name)
        if theirs and ours and max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > 1e-6:
            raise DataError(f"{where}: labels for images of {name} {theirs}, these have {ours}")


def _teacher(
    tensors: dict[str, torch.Tensor],
    facts: dict[str, Any],
    classes: tuple[str, ...],
    size: int,
    where: str,
) -> Classifier:
    """Return a teacher that travels with labels without logits."""
    if tuple(facts.get("classes", ())) != classes:
        raise DataError(f"{where}: taught {facts.get('classes')}, images are of {list(classes)}")
    teacher = build(facts["architecture"], len(classes), size)
    try:
        teacher.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{where}: not the weights of {facts['architecture']}") from error
    return freeze(teacher.to(memory_format=preferred_layout(teacher)))


def inconsistencies(run: RunFolder) -> list[str]:
    """Return every way the parts of a distilled set do not belong together.

    Hashes say that files are as they were written; this says that they are what was meant: one
    image of the right size for each class and number, and labels of these classes and images.
    """
    try:
        manifest = run_manifest(run)
        size, ipc, folders = manifest["data"]["image_size"], manifest["ipc"], manifest["folders"]
        wanted = {image_name(folder, index) for folder in folders for index in range(ipc)}
        found = {name for name in manifest["files"] if name.startswith("images/")}
        if len(folders) != len(manifest["classes"]):
            return [f"{len(folders)} folders for {len(manifest['classes'])} classes"]
        if wanted != found:
            return [f"{name}: missing or too much" for name in sorted(wanted ^ found)]
        for name in sorted(wanted):
            height, width, _ = read_image(run.path / name).shape
            if height != size or width != size:
                return [f"{name}: {width}x{height} px, not {size}x{size}"]
        load(run.path)
    except RetaError as error:
        return [str(error)]
    except (KeyError, TypeError, ValueError) as error:
        return [f"{run.path / MANIFEST}: not a manifest of a distilled set ({error!r})"]
    return []


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


_TEACHER = "labels/teacher-"


def teacher_name(index: int) -> str:
    """Return the path, inside a run folder, of a teacher that answers while students train."""
    return f"{_TEACHER}{index:02d}.safetensors"
