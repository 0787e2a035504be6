"""A distilled set in the formats others read: each whole, and readable without reta."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from reta import __version__
from reta.data.distilled import DistilledSet, image_name, load
from reta.errors import UsageError, unknown
from reta.reporting.card import CARD, card_text, front_matter
from reta.reporting.reading import read_run
from reta.sharing.extras import optional
from reta.storage import atomic_write, json_bytes
from reta.tensors import read_tensors, tensor_bytes

_SAMPLES_PER_TAR = 10_000
# What DD-Ranking 0.2.0 normalises its test images with (its utils/data.py), CIFAR-10's for both.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@dataclass(frozen=True)
class Parcel:
    """A distilled set on its way out.

    Attributes:
        folder: the run folder.
        manifest: of the run.
        data: the images and labels, compared with the manifest as they were read.
        soft: ``(n, classes)`` float32, one soft label per image, see `mean_labels`.
        facts: what every format carries beside the images: classes, normalisation, origin.
    """

    folder: Path
    manifest: dict[str, Any]
    data: DistilledSet
    soft: torch.Tensor
    facts: dict[str, Any]

    @property
    def paths(self) -> list[Path]:
        """The image files, in the order of the images."""
        names = [image_name(name, i) for name in self.facts["folders"] for i in range(self.ipc)]
        return [self.folder / name for name in names]

    @property
    def ipc(self) -> int:
        """Images per class."""
        return int(self.facts["ipc"])

    @property
    def card(self) -> str:
        """The dataset card, with what its owner filled in."""
        path = self.folder / CARD
        earlier = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        return card_text(read_run(self.folder), earlier)


Writer = Callable[[Parcel, Path], None]


def export(folder: str | Path, form: str, out: str | Path) -> Path:
    """Write a distilled set in another format; see `FORMATS`.

    Every format carries class names, normalisation and origin (``dataset.json``), the dataset
    card, the recorded views with their soft labels (``labels/``), and one soft label per image.

    Args:
        folder: a run folder.
        form: a name of `FORMATS`.
        out: a new or empty folder.

    Returns:
        ``out``.

    Raises:
        DataError: if the run is unfinished or damaged.
        UsageError: if the format is unknown, its library missing, or ``out`` holds something.
    """
    folder, out = Path(folder), Path(out)
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; choose an empty or a new --out")
    parcel = _pack(folder, form)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Made elsewhere and renamed, so that an interrupted export leaves nothing half there.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room:
        made = Path(room) / "made"
        made.mkdir()
        atomic_write(made / "dataset.json", json_bytes(parcel.facts))
        atomic_write(made / CARD, parcel.card.encode())
        for path in sorted((folder / "labels").glob("*.safetensors")):
            _copy(path, made / "labels" / path.name)
        FORMATS[form][1](parcel, made)
        if out.is_dir():
            out.rmdir()
        made.rename(out)
    return out


def _pack(folder: Path, form: str) -> Parcel:
    run = read_run(folder)
    data = load(folder, temperature=1.0)
    about = run.data
    facts = {
        "classes": list(data.classes),
        "folders": run.folders,
        "ipc": run.ipc,
        "image_size": about.get("image_size"),
        "mean": about.get("mean"),
        "std": about.get("std"),
        "data": about,
        "method": run.manifest.get("method"),
        "source": run.manifest.get("source"),
        "seed": run.manifest.get("seed"),
        "format": form,
        "reta": __version__,
        "soft_labels": "mean of the teachers' probabilities over an image's first recorded views, "
        "each weighted by the share of it that CutMix left; labels/ has every view",
    }
    return Parcel(folder, run.manifest, data, mean_labels(data), facts)


def mean_labels(data: DistilledSet, views: int = 20) -> torch.Tensor:
    """Return one soft label per image ``(n, classes)``, for formats that know no views.

    The mean over the first recorded views of an image, each weighted by the share of its area that
    is the image's own and not its CutMix partner's.

    Args:
        data: a distilled set.
        views: of each image at most.
    """
    size = data.images.shape[-1]
    total = torch.zeros(len(data), len(data.classes))
    for epoch in range(min(data.stored_epochs, views)):
        shown = data.views(epoch)
        own = 1 - shown.mix.boxes[:, 2] * shown.mix.boxes[:, 3] / size**2
        batches = data.batches(epoch, torch.device("cpu"))
        said = torch.cat([logits for batch in batches for _, logits in batch]).softmax(dim=1)
        total.index_add_(0, shown.order, said * own[:, None])
    return total / total.sum(dim=1, keepdim=True).clamp(min=1e-12)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _image_folder(parcel: Parcel, out: Path) -> None:
    for path in parcel.paths:
        _copy(path, out / path.relative_to(parcel.folder))
    atomic_write(out / "soft_labels.safetensors", _soft_bytes(parcel))


def _soft_bytes(parcel: Parcel) -> bytes:
    names = [path.relative_to(parcel.folder).as_posix() for path in parcel.paths]
    return tensor_bytes({"soft_labels": parcel.soft}, {**parcel.facts, "images": names})


def _npz(parcel: Parcel, out: Path) -> None:
    arrays: dict[str, Any] = {
        "images": parcel.data.images.permute(0, 2, 3, 1).numpy(),
        "labels": parcel.data.labels.numpy(),
        "soft_labels": parcel.soft.numpy(),
        "classes": np.array(parcel.data.classes, dtype=np.str_),
        "mean": np.array(parcel.facts["mean"], dtype=np.float32),
        "std": np.array(parcel.facts["std"], dtype=np.float32),
    }
    for path in sorted((out / "labels").glob("views-*.safetensors")):
        tensors, _ = read_tensors(path)
        arrays |= {f"{path.stem}.{name}": tensor.numpy() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic_write(out / "distilled.npz", buffer.getvalue())


def _safetensors(parcel: Parcel, out: Path) -> None:
    tensors = {
        "images": parcel.data.images,
        "labels": parcel.data.labels,
        "soft_labels": parcel.soft,
    }
    atomic_write(out / "distilled.safetensors", tensor_bytes(tensors, parcel.facts))


def _webdataset(parcel: Parcel, out: Path) -> None:
    paths, labels = parcel.paths, parcel.data.labels.tolist()
    for first in range(0, len(paths), _SAMPLES_PER_TAR):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(first, min(first + _SAMPLES_PER_TAR, len(paths))):
                label = labels[index]
                soft = io.BytesIO()
                np.save(soft, parcel.soft[index].numpy(), allow_pickle=False)
                about = {"class": parcel.data.classes[label], "label": label}
                _add(tar, f"{index:08d}.png", paths[index].read_bytes())
                _add(tar, f"{index:08d}.cls", str(label).encode())
                _add(tar, f"{index:08d}.json", json_bytes(about))
                _add(tar, f"{index:08d}.soft.npy", soft.getvalue())
        name = f"distilled-{first // _SAMPLES_PER_TAR:06d}.tar"
        atomic_write(out / name, buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # no owner, no time: equal sets, equal bytes
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _hugging_face(parcel: Parcel, out: Path) -> None:
    datasets = optional("datasets", "hf")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=_distinct(parcel.data.classes)),
            "soft_label": datasets.List(datasets.Value("float32"), length=len(parcel.data.classes)),
        }
    )
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in parcel.paths],
        "label": parcel.data.labels.tolist(),
        "soft_label": parcel.soft.tolist(),
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    (out / "data").mkdir()
    datasets.disable_progress_bars()
    table.to_parquet(str(out / "data" / "train-00000-of-00001.parquet"))
    _reconfigure(out / CARD, "data/train-*")


def _distinct(names: tuple[str, ...]) -> list[str]:
    # ClassLabel refuses equal names; two classes of one name keep their order by a number.
    return [
        name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)
    ]


def _reconfigure(card: Path, path: str) -> None:
    """Point the front matter of a card at other files than ``images/``."""
    text = card.read_text("utf-8")
    facts = front_matter(text)
    facts["configs"] = [
        {"config_name": "default", "data_files": [{"split": "train", "path": path}]}
    ]
    body = text.split("\n---\n", 1)[1]
    top = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    atomic_write(card, f"---\n{top}---\n{body}".encode())


def _dd_ranking(parcel: Parcel, out: Path) -> None:
    """Write what DD-Ranking's evaluators take: ``image_path`` and, class-major, tensors."""
    mean, std = _dd_ranking_statistics(parcel)
    for index, path in enumerate(parcel.paths):
        label, number = divmod(index, parcel.ipc)
        _copy(path, out / "images" / f"{label:05d}" / f"{number:05d}.png")
    pixels = parcel.data.images.float() / 255
    shape = (1, 3, 1, 1)
    tensors = {
        "image_tensor": (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape),
        "hard_labels": parcel.data.labels,
        # Their losses take a softmax of the labels: logits, which log-probabilities are.
        "soft_labels": parcel.soft.clamp(min=1e-8).log(),
    }
    facts = {**parcel.facts, "normalised_with": {"mean": list(mean), "std": list(std)}}
    atomic_write(out / "distilled.safetensors", tensor_bytes(tensors, facts))
    atomic_write(out / "ddranking.md", _DD_RANKING.format(ipc=parcel.ipc).encode())


def _dd_ranking_statistics(parcel: Parcel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    name = str(parcel.facts["data"].get("name", "")).lower().replace("-", "")
    if "cifar" in name:
        return _CIFAR
    # Theirs for Tiny-ImageNet, ImageNet and its subsets; other sets it does not know.
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_DD_RANKING = """\
# Reading this folder with DD-Ranking 0.2

```python
from safetensors.torch import load_file
from ddranking.metrics import HardLabelEvaluator

tensors = load_file("distilled.safetensors")
evaluator = HardLabelEvaluator(dataset="CIFAR100", ipc={ipc})  # your data set's name
evaluator.compute_metrics(image_tensor=tensors["image_tensor"], hard_labels=tensors["hard_labels"])
```

`image_tensor` is class-major and normalised as DD-Ranking normalises its test images
(`normalised_with` in the file's metadata). `images/` has the same images as class folders, for
`image_path=`; give `custom_train_trans` then. `soft_labels` are log-probabilities, for soft-label
mode "S" at temperature 1. Only the data sets DD-Ranking knows can be scored, in its class order.
"""

# Name: what it is for, and what writes it.
FORMATS: dict[str, tuple[str, Writer]] = {
    "imagefolder": ("PNG files in class folders, for torchvision and most tools", _image_folder),
    "npz": ("NumPy arrays in one file; read with allow_pickle=False", _npz),
    "safetensors": ("tensors in one file, instead of .pt", _safetensors),
    "webdataset": ("tar shards for streaming", _webdataset),
    "hf": ("a Hugging Face data set with Parquet files", _hugging_face),
    "dd-ranking": ("class-major tensors and folders for DD-Ranking's evaluators", _dd_ranking),
}
