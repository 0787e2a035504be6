"""Where teachers come from that were not trained here: torchvision's weights, or a user's own.

A teacher is written ``resnet18`` (trained here), ``resnet18@imagenet`` (torchvision's weights) or
``FILE.safetensors`` (a file of reta, see `adopt`).
"""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model_weights

from reta import models
from reta.errors import DataError, UsageError, unknown
from reta.models import Classifier, Task
from reta.progress import log
from reta.runtime import seeded
from reta.storage import sha256_file
from reta.tensors import read_tensors

IMAGENET = "@imagenet"

NORMALIZATIONS: dict[str, tuple[models.Triple, models.Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "bytes": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Mean and standard deviation, of images in [0, 1], by name; ``bytes``: pixels from 0 to 255."""


@dataclass(frozen=True)
class TeacherSpec:
    """How a teacher is written.

    Attributes:
        text: as written.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def file(self) -> Path | None:
        """The file of weights, if it is one."""
        return Path(self.text) if Path(self.text).suffix in _SUFFIXES else None

    @property
    def architecture(self) -> str | None:
        """The architecture, where it is written and not in the file."""
        return None if self.file else self.text.removesuffix(IMAGENET)

    @property
    def trained_here(self) -> bool:
        """Whether the teacher is to be trained on the data."""
        return self.file is None and not self.text.endswith(IMAGENET)

    @property
    def name(self) -> str:
        """What the teacher is called in files and tables."""
        if self.file:
            return models.file_stem(self.file.stem)
        return models.file_stem(self.text.replace("@", "-"))

    def check(self, image_size: int) -> None:
        """Refuse at once what cannot be a teacher of images of this size."""
        if self.file is not None:
            if self.file.suffix != ".safetensors":
                raise UsageError(
                    f"{self.text}: not a file of reta; turn it into one: reta adopt {self.text} …"
                )
            if not self.file.is_file():
                raise UsageError(f"{self.text}: no such file")
            return
        name = self.architecture or ""
        models.check(name, image_size)
        if not self.trained_here:
            _imagenet_weights(name)
            if image_size <= models.SMALL:
                raise UsageError(
                    f"{self.text}: these weights need images larger than {models.SMALL} px, not "
                    f"{image_size} px; train {name} here, or use a larger --image-size"
                )


_OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def located(teachers: Sequence[str]) -> tuple[str, ...]:
    """Return teachers as written, with the full path of every file, so that they hold anywhere."""
    files = [(text, TeacherSpec(text).file) for text in teachers]
    return tuple(str(file.expanduser().resolve()) if file else text for text, file in files)


def fingerprint(spec: TeacherSpec) -> str:
    """Return a hash of a teacher's weights without reading more than needed."""
    if spec.file is not None:
        return sha256_file(spec.file)
    return str(_imagenet_weights(spec.architecture or "").url)


def open_teacher(spec: TeacherSpec, task: Task) -> Classifier:
    """Return a teacher that was trained elsewhere, frozen, with its logits in the data's order.

    Classes are matched by name, so a teacher may know more of them, or in another order.

    Args:
        spec: of a file or of torchvision's weights.
        task: of the data; its normalisation is not used, a teacher brings its own.

    Raises:
        DataError: if it does not know a class of the data, or was made for another image size;
            if weights cannot be had or are damaged.
    """
    if spec.file is not None:
        model, own = models.read(spec.file)
        if own.image_size != task.image_size:
            raise DataError(
                f"{spec.text}: made for images of {own.image_size} px, these have "
                f"{task.image_size} px; use --image-size {own.image_size}"
            )
        known = {name: index for index, name in enumerate(own.classes)}
        chosen = [known.get(name) for name in task.classes]
        names: Sequence[str] = own.classes
    else:
        model = _imagenet(spec.architecture or "", task.image_size)
        names = [category for _, category in _imagenet_classes()]
        chosen = [_imagenet_index().get(_plain(name)) for name in task.classes]
    lost = [name for name, index in zip(task.classes, chosen, strict=True) if index is None]
    if lost:
        raise DataError(
            f"{spec.text}: does not know the class {lost[0]!r} of the data; "
            f"it {models.difference(names, task.classes)}"
        )
    rows = [index for index in chosen if index is not None]
    if rows != list(range(len(names))):
        log.info("%s: %d of its %d classes, matched by name", spec.text, len(rows), len(names))
        _select(model, rows)
    return model


def _select(model: Classifier, rows: Sequence[int]) -> None:
    """Keep some logits of a classifier, in a new order."""
    paths = [path for path, part in model.head.named_modules() if isinstance(part, nn.Linear)]
    path = f"head.{paths[-1]}".rstrip(".")
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    new = nn.Linear(old.in_features, len(rows), bias=old.bias is not None)
    new.load_state_dict({name: value[list(rows)] for name, value in old.state_dict().items()})
    model.set_submodule(path, new)
    model.classes = len(rows)
    models.freeze(model)


def _imagenet_weights(architecture: str) -> Any:
    """Return torchvision's description of its ImageNet weights of an architecture."""
    try:
        return get_model_weights(architecture).IMAGENET1K_V1
    except ValueError as error:
        raise UsageError(
            f"{architecture}{IMAGENET}: torchvision has no such weights; "
            "name one of its networks, such as resnet18@imagenet"
        ) from error


def _imagenet(architecture: str, image_size: int) -> Classifier:
    """Return a network with torchvision's weights, downloaded once and compared with their hash."""
    weights = _imagenet_weights(architecture)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    digest = path.stem.rpartition("-")[2]
    if not path.exists():
        log.info("downloading %s to %s", weights.url, path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(weights.url, str(path), digest, progress=False)
        except (urllib.error.URLError, OSError) as error:
            raise DataError(
                f"{weights.url} cannot be downloaded ({error}); fetch it where there is a network "
                f"and put it at {path}"
            ) from error
        except RuntimeError as error:  # torch's word for another hash
            raise DataError(f"{weights.url}: {error}") from error
    if not sha256_file(path).startswith(digest):
        raise DataError(f"{path}: not the file it was published as; delete it and try again")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if architecture.startswith("densenet"):  # published with the names of an older torchvision
        state = {_OLD_NAMES.sub(r"\1\2", key): v for key, v in state.items()}
    module = _loaded(path, architecture, state, 1000, image_size)
    mean, std = NORMALIZATIONS["imagenet"]
    return models.freeze(models.dress(architecture, module, 1000, image_size, mean, std))


@lru_cache
def _imagenet_classes() -> list[tuple[str, str]]:
    """Return WordNet id and name of ImageNet's classes, in order."""
    text = (resources.files("reta.models") / "imagenet.txt").read_text(encoding="utf-8")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines()]


@lru_cache
def _imagenet_index() -> dict[str, int]:
    """Return the number of each class of ImageNet by its id, its name, and both plainly spelt."""
    found: dict[str, int] = {}
    for index, names in enumerate(_imagenet_classes()):
        found |= {_plain(name): index for name in names}
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def adopt(
    weights: Path | str,
    out: Path | str,
    *,
    architecture: str,
    classes: Sequence[str],
    image_size: int,
    normalization: str | tuple[models.Triple, models.Triple],
    allow_pickle: bool = False,
) -> Task:
    """Turn a state dict into a teacher: weights that say their classes, size and normalisation.

    Args:
        weights: safetensors, or a file of torch (``.pth``) with ``allow_pickle``.
        out: the ``.safetensors`` file to write.
        architecture: a name of `reta.models.build`.
        classes: names, in the order of the logits.
        image_size: side in pixels; up to 64 the network has a stem for small images.
        normalization: a name of `NORMALIZATIONS`, or mean and standard deviation of images in
            [0, 1].
        allow_pickle: whether to read a file of torch; only tensors are accepted even then.

    Returns:
        What was written beside the weights.

    Raises:
        UsageError: if an answer is missing or wrong.
        DataError: if the file is damaged or holds other weights.
    """
    if Path(out).suffix != ".safetensors":
        raise UsageError(f"{out}: a teacher is a .safetensors file; name it so")
    mean, std = _normalization(normalization) if isinstance(normalization, str) else normalization
    if not classes or len(set(classes)) < len(classes):
        raise UsageError("classes: name every class once, in the order of the logits")
    models.check(architecture, image_size)
    state = _state_dict(Path(weights), allow_pickle)
    module = _loaded(Path(weights), architecture, state, len(classes), image_size)
    model = models.dress(architecture, module, len(classes), image_size, mean, std)
    task = Task(tuple(classes), image_size, mean, std)
    models.save(model, out, task)
    return task


def _normalization(words: str) -> tuple[models.Triple, models.Triple]:
    """Return mean and standard deviation from a name or from six numbers."""
    if words in NORMALIZATIONS:
        return NORMALIZATIONS[words]
    try:
        (a, b, c), (d, e, f) = (map(float, part.split(",")) for part in words.split("/"))
    except ValueError:
        raise unknown("normalisation", words, [*NORMALIZATIONS, "R,G,B/R,G,B"]) from None
    return (a, b, c), (d, e, f)


def _state_dict(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of weights by name, without the wrappings that are common."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        content: Any = read_tensors(path)[0]
    elif not allow_pickle:
        raise UsageError(
            f"{path}: a pickle, and reading one can run code that hides in it; save the weights as "
            "safetensors, or say --allow-pickle-weights if you trust where it comes from"
        )
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken or hostile pickle ends in
            raise DataError(
                f"{path}: cannot be read as weights alone ({str(error).splitlines()[0]}); "
                "save model.state_dict() as safetensors"
            ) from error
    for key in ("state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"{path}: holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise DataError(f"{path}: {name!r} is no tensor; save model.state_dict() alone")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _loaded(
    path: Path, architecture: str, state: Mapping[str, torch.Tensor], classes: int, image_size: int
) -> nn.Module:
    """Return an architecture's bare module with these weights, or say how they differ."""
    with seeded(0, "weights", architecture):
        module = models.network(architecture, classes, image_size)
    own = module.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # absent of old
    missing = sorted(own.keys() - state.keys() - counters)
    more = sorted(state.keys() - own.keys())
    if missing or more:
        raise DataError(
            f"{path}: not the weights of a {architecture}: "
            f"{len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(more)} unknown ({', '.join(more[:3])})"
        )
    for name, value in own.items():
        if name in counters:
            continue
        theirs = tuple(state[name].shape)
        if theirs != tuple(value.shape):
            why = "the architecture"
            if value.ndim == 4:
                why = f"the stem: at {image_size} px a small image's is expected, or the other way"
            elif theirs[1:] == tuple(value.shape)[1:]:
                why = f"the number of classes: {theirs[0]}, not {classes}"
            raise DataError(f"{path}: {name} is {theirs}, not {tuple(value.shape)}; probably {why}")
    module.load_state_dict(state)
    return module
