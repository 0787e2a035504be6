"""What decides the bytes of a run: one flat, frozen value, read from options or YAML."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from reta.errors import UsageError, unknown

Effort = Literal["smoke", "small", "paper"]
ProtocolName = Literal["default", "fadrm", "own"]
LabelKind = Literal["soft", "hard"]

T = TypeVar("T")


# What --help says of a setting that is left open.
_BY_EFFORT = tyro.conf.arg(help_behavior_hint="(default: by effort)")
_BY_DATA = tyro.conf.arg(help_behavior_hint="(default: by the data)")


@dataclass(frozen=True)
class Config:
    """The settings of a run; None means: chosen by effort, see `resolve`.

    Attributes:
        data: a known name, a folder with one sub-folder per class, an .npz or a .parquet file.
        method: a name of `reta methods`.
        ipc: synthetic images per class.
        seed: of every random choice.
        effort: the one dial for time: smoke (seconds), small (minutes on a CPU), paper.
        image_size: side in pixels; by default the data's own, at most 64 below effort paper.
        classes: use only the first so many classes, or those named, in this order.
        per_class: use only the first so many real images of each class.
        test_per_class: measure students on the first so many test images of each class only.
        flip: whether mirroring keeps an image's meaning; by default yes, but not for digits.
        stream: leave the images in their files and decode them when needed; by default where
            they would take more than 8 GB of memory.
        bad_images: what to do with images that cannot be used: fail, skip (leave out, recorded in
            the manifest) or quarantine (and copy into the run folder); no more than 1 % of a class.
        root: folder of the sets known by name; RETA_DATA or ~/.cache/reta by default.
        download: fetch a set known by name if it is not there.
        workers: processes that decode streamed images; changes speed only.
        teachers: the committee: architectures to train, resnet18@imagenet for torchvision's
            weights, or files (see `reta adopt`); the first gives the features.
        teacher_floor: accuracy from which a teacher trained elsewhere is let in; by default five
            times chance (at most halfway to 1) and no better under another normalisation,
            channel order or class order.
        teacher_epochs: passes over the real images, 0.2 being one over a fifth of them, drawn at
            random; at most, if teacher_accuracy is given; by
            default, at effort small, up to 30, and the fewer the fewer images are made of a class.
        teacher_accuracy: accuracy at which a teacher is trained enough, measured on a tenth of
            the training images that is held out for it; over-trained teachers distil worse.
        teacher_smoothing: share of a teacher's hard labels that is spread over all classes.
        teacher_ema: decay of the running mean of weights that a teacher ends with; 0: none.
        steps: optimisation steps on the pixels; by default the method's own at effort paper, a
            fifth of them at small, a fiftieth at smoke.
        label_epochs: epochs of labelled views; students train as long.
        label_format: how logits are stored: int8, float16, int4, topk; or online, not at all: the
            teachers travel with the set and answer while students train.
        label_keep: share of the label epochs that is stored; students go round them.
        label_top: logits of each view kept by topk; a tenth of the classes by default.
        student: architecture of the students.
        students: how many students are trained, with different seeds.
        protocol: default; fadrm: the best of four presets on test images; own: as the authors of
            the method train students, default where they have no other way.
        labels: what students learn from: the committee's soft labels, or hard ones.
        learning_rate: of the students, not of the pixels; not of protocol fadrm.
        stretch: η of the students' cosine; at 2 it ends at half the rate; not of protocol fadrm.
        block: classes optimised together, at most; a BN group is one image of each, so it is part
            of the method, and smaller blocks than 100 give other images.
        images_per_pass: synthetic images in one forward pass; changes speed and memory only.
        compiled: have torch compile each teacher for the steps on the pixels. Takes a minute for a
            teacher and size, so it is for long runs on a GPU; in float32; other bytes.
        options: settings of the method, such as connection.trade_off: 0.2.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    method: str = "reta"
    ipc: int = 10
    seed: int = 0
    effort: Effort = "small"
    image_size: Annotated[int | None, _BY_DATA] = None
    classes: Annotated[int | tuple[str, ...] | None, _BY_DATA] = None
    per_class: Annotated[int | None, _BY_DATA] = None
    test_per_class: Annotated[int | None, _BY_DATA] = None
    flip: Annotated[bool | None, _BY_DATA] = None
    stream: Annotated[bool | None, _BY_DATA] = None
    bad_images: Literal["fail", "skip", "quarantine"] = "fail"
    root: str | None = None
    download: bool = True
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: all cores)")] = None
    teachers: Annotated[tuple[str, ...] | None, _BY_EFFORT] = None
    teacher_epochs: Annotated[float | None, _BY_EFFORT] = None
    teacher_accuracy: Annotated[float | None, tyro.conf.arg(help_behavior_hint="")] = None
    teacher_smoothing: float = 0.0
    teacher_ema: float = 0.0
    teacher_floor: Annotated[float | None, _BY_DATA] = None
    steps: Annotated[int | None, _BY_EFFORT] = None
    label_epochs: Annotated[int | None, _BY_EFFORT] = None
    label_format: Literal["online", "float16", "int8", "int4", "topk"] = "int8"
    label_keep: float = 1.0
    label_top: Annotated[int | None, _BY_DATA] = None
    student: Annotated[str | None, _BY_EFFORT] = None
    students: Annotated[int | None, _BY_EFFORT] = None
    protocol: ProtocolName = "default"
    labels: LabelKind = "soft"
    learning_rate: float = 1e-3
    stretch: float = 2.0
    block: int = 100
    images_per_pass: int = 100
    compiled: bool = False
    options: Annotated[Mapping[str, Any], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if self.effort not in typing.get_args(Effort):
            raise unknown("effort", self.effort, typing.get_args(Effort))
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if self.teacher_epochs is not None:
            if not 0 < self.teacher_epochs < math.inf:
                raise UsageError(f"teacher_epochs is {self.teacher_epochs}; it must be above 0")
            object.__setattr__(self, "teacher_epochs", whole(self.teacher_epochs))
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must not be negative")
        if not 0 < self.label_keep <= 1:
            raise UsageError(f"label_keep is {self.label_keep}; it must be above 0 and at most 1")
        for name in ("learning_rate", "stretch"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("teacher_accuracy", "teacher_smoothing", "teacher_ema", "teacher_floor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{name} is {value}; it is a share, from 0 to below 1")
        if self.teachers is not None and len(set(self.teachers)) != max(len(self.teachers), 1):
            raise UsageError("name at least one teacher, and each only once")


_COUNTS = (
    "ipc",
    "image_size",
    "classes",
    "per_class",
    "test_per_class",
    "steps",
    "label_epochs",
    "label_top",
    "students",
    "block",
    "images_per_pass",
    "workers",
)

# What the one dial sets. Paper: FADRM's committee and budget (its ShuffleNet is the half-width one
# on small images), five students; the label epochs of small images are 1000, of larger ones 300.
_EFFORTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "teachers": ("convnet3", "convnet4"),
        "teacher_epochs": 4,
        "label_epochs": 20,
        "student": "convnet3",
        "students": 1,
    },
    "small": {
        "teachers": ("convnet3", "convnet4"),
        "teacher_epochs": 30,
        "label_epochs": 200,
        "student": "convnet3",
        "students": 3,
    },
    "paper": {
        "teachers": ("resnet18", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v2"),
        "teacher_epochs": 200,
        "label_epochs": 1000,
        "student": "resnet18",
        "students": 5,
    },
}


VIEWS = 1000
"""How many images of a class teachers of `small` learn from, for each image that is made of it.

Repeats count. Those that learned for longer make worse sets: docs/reproduction.md has the numbers.
"""

FEWEST_VIEWS = 5000
"""How many images of all classes they learn from at least: a few classes take some steps too."""

SHARE_OF_STEPS = {"smoke": 0.02, "small": 0.2, "paper": 1.0}
"""How much of a method's own optimisation budget each effort spends."""


def whole(number: float) -> float:
    """Return a number as an integer if it is one, as it was written."""
    return int(number) if float(number).is_integer() else number


def resolve(config: Config, image_size: int, classes: int, images: int) -> Config:
    """Return the settings with everything left open chosen by effort and the real images.

    Args:
        config: the settings.
        image_size: in pixels.
        classes: how many there are.
        images: training images of all classes.
    """
    chosen = dict(_EFFORTS[config.effort])
    if config.effort == "small" and config.teacher_accuracy is None:
        passes = max(VIEWS * config.ipc * classes, FEWEST_VIEWS) / images
        passes = math.ceil(passes) if passes > 1 else math.ceil(100 * passes) / 100
        chosen["teacher_epochs"] = min(chosen["teacher_epochs"], passes)
    if config.effort == "paper" and image_size > 32:
        chosen |= {"label_epochs": 300, "teacher_epochs": 50}
        if config.ipc == 1 and image_size <= 64:  # Tiny-ImageNet at one image per class
            chosen["label_epochs"] = 1000
    if config.effort == "paper" and image_size > 64:
        chosen["teachers"] = ("resnet18", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v2")
    left_open = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return dataclasses.replace(config, image_size=image_size, **left_open)


def to_yaml(config: Config) -> bytes:
    """Return the settings as YAML, in the order they are declared."""
    values = dataclasses.asdict(config)
    for name, value in values.items():
        if isinstance(value, tuple):
            values[name] = list(value)
    values["options"] = dict(config.options)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text.encode()


def from_yaml(path: Path) -> Config:
    """Read settings from a YAML file.

    Raises:
        UsageError: if the file is missing, is no mapping, or has an unknown or mistyped key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected lines of the form `key: value`")
    return from_mapping(values, str(path))


def from_mapping(values: Mapping[str, Any], where: str) -> Config:
    """Return settings from plain values, checked against the declared names and types."""
    fields = {field.name for field in dataclasses.fields(Config)}
    hints = typing.get_type_hints(Config)
    checked = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown(f"key in {where}:", name, sorted(fields))
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hints[name]):
            raise UsageError(f"{where}: {name} is {value!r}, which is not {_words(hints[name])}")
        checked[name] = value
    if "data" not in checked:
        raise UsageError(f"{where}: no `data`; name a data set or a folder of images")
    return Config(**checked)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if parts[1:] == (...,):
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is not None:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def value_of(text: str) -> Any:
    """Return a YAML value; unlike YAML 1.1, 1e-3 is a number too."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def setting_of(word: str) -> tuple[str, Any]:
    """Return the name and the value of a setting written ``PART.FIELD=VALUE``."""
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise UsageError(f"{word}: write it as PART.FIELD=VALUE")
    return name, value_of(value)


def preset_names() -> list[str]:
    """Return the names of the presets that are shipped."""
    folder = resources.files("reta") / "presets"
    return sorted(path.name[:-5] for path in folder.iterdir() if path.name.endswith(".yaml"))


def preset_title(name: str) -> str:
    """Return what a shipped preset says of itself in its first line."""
    text = (resources.files("reta") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ")


def preset(name: str) -> Config:
    """Return a preset by name, or the settings in a YAML file."""
    if name.endswith((".yaml", ".yml")):
        return from_yaml(Path(name))
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    with resources.as_file(resources.files("reta") / "presets" / f"{name}.yaml") as path:
        return from_yaml(path)


def with_options(value: T, options: Mapping[str, Any]) -> T:
    """Return a tree of frozen dataclasses with some fields replaced.

    Args:
        value: the tree, such as a recipe.
        options: dotted names and new values, such as ``{"connection.trade_off": 0.2}``.

    Raises:
        UsageError: naming the nearest field, if there is none of that name.
    """
    for path, new in options.items():
        value = _replaced(value, path.split("."), new, path)
    return value


def _replaced(value: Any, parts: list[str], new: Any, path: str) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise UsageError(f"{path}: this method has no such part")
    names = [field.name for field in dataclasses.fields(value)]
    if parts[0] not in names:
        raise unknown(f"setting {path!r}:", parts[0], names)
    hint = typing.get_type_hints(type(value))[parts[0]]
    if len(parts) > 1:
        new = _replaced(getattr(value, parts[0]), parts[1:], new, path)
    else:
        if isinstance(new, list):
            new = tuple(new)
        if dataclasses.is_dataclass(getattr(value, parts[0])):
            raise UsageError(f"{path} is a part; set one of its fields, such as {path}.FIELD")
        if not _fits(new, hint):
            raise UsageError(f"{path} is {new!r}, which is not {_words(hint)}")
    return dataclasses.replace(value, **{parts[0]: new})


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return str(getattr(hint, "__name__", hint))


def describe(value: Any) -> Any:
    """Return a tree of dataclasses as plain JSON values, with the type of each part."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {name: describe(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    return value
