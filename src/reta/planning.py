"""What a run will take, before anything runs: stages, time, memory, disk, and what does not fit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from reta.clock import Clock, extents, looks_of
from reta.config import Config, resolve
from reta.data.formats import label_format
from reta.data.images import StreamedImages
from reta.data.labels import LabelShard, draw_epoch
from reta.data.sources import Source
from reta.errors import UsageError
from reta.models import Classifier
from reta.parts import Job, class_blocks, label_shards
from reta.preparation import open_data, pool_spans, recipe_of
from reta.runtime import Device, choose_device
from reta.squeeze import build_for, committee_of, task_of
from reta.teachers import TeacherSpec


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: of the stage.
        units: of work: what an interruption cannot undo, and what machines can share.
        detail: what is done, in words.
        seconds: estimated on this machine; None if it was not timed.
    """

    name: str
    units: int
    detail: str
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        stages: in order; training students is a command of its own.
        bytes: on the disk, by kind; images at most, labels and weights as they will be.
        free: bytes free where the run folder will lie.
        memory: peak in bytes, estimated; None if nothing was timed.
        memory_limit: bytes of the GPU, or of this machine.
        problems: what does not fit, and what to change.
    """

    stages: list[Stage]
    bytes: dict[str, int]
    free: int
    memory: int | None = None
    memory_limit: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def units(self) -> int:
        """Units of work until the set is distilled."""
        return sum(stage.units for stage in self.stages if stage.name != "students")

    @property
    def seconds(self) -> float | None:
        """Of all stages, if they were timed."""
        times = [stage.seconds for stage in self.stages]
        return None if None in times else sum(value or 0 for value in times)


def plan(
    config: Config, out: Path | str, device: str = "auto", source: Source | None = None
) -> Plan:
    """Return what a run will take, timed by a few steps of each network on this machine.

    Args:
        config: the settings of `reta.distill`.
        out: the run folder; nothing is written.
        device: ``auto``, ``cpu``, ``cuda`` ….
        source: the real images, if they are open already.
    """
    source = source or open_data(config)
    config = resolve(config, *source.shape)
    bare, place = outline(config, source, out), choose_device(device)
    clock = Clock(config, source, place)
    times = clock.seconds(class_blocks(Job(Path(out), config), source))
    stages = [replace(stage, seconds=times.get(stage.name, 0.0)) for stage in bare.stages]
    made = replace(bare, stages=stages, memory=clock.memory(), memory_limit=_memory_limit(place))
    return replace(made, problems=_problems(made, config))


def outline(config: Config, source: Source, out: Path | str) -> Plan:
    """Return what a run will take as far as it can be known at once, without times and memory."""
    config = resolve(config, *source.shape)
    job, specs, recipe = Job(Path(out), config), committee_of(config), recipe_of(config)
    blocks, shards = class_blocks(job, source), label_shards(job, source)
    count = len(source.classes) * config.ipc
    labelled = sum(len(part.span) for part in shards)
    here = sum(spec.trained_here for spec in specs)
    online = config.label_format == "online"
    ground = recipe.engine.groundwork if recipe.engine else 0
    looks = sum(passes.total for _, passes in looks_of(recipe, extents(job, source)))
    looked = f" after {looks:,.0f} images that teachers look at" if looks else ""
    stages = [
        Stage("begin", 1, "settings"),
        Stage(
            "squeeze",
            len(specs),
            f"{here} of {len(specs)} teachers trained, {config.teacher_epochs} epochs each",
        ),
        Stage("pool", len(pool_spans(source.train)), f"{len(source.train)} real images"),
        *([Stage("groundwork", ground, "networks trained on real images")] if ground else []),
        Stage("recover", len(blocks), f"{count} images, {recipe.steps} steps{looked}"),
        Stage("relabel", len(shards) + online, f"{labelled} epochs of {count} views"),
        Stage("measure", 1, "geometry of the classes"),
        Stage(
            "students",
            config.students or 1,
            f"{config.students} of {config.student}, {config.label_epochs} epochs (reta train)",
        ),
    ]
    size = _sizes(config, source, specs, count, labelled)
    made = Plan(stages, size, _free(Path(out)))
    return replace(made, problems=_problems(made, config))


def _sizes(
    config: Config, source: Source, specs: list[TeacherSpec], count: int, labelled: int
) -> dict[str, int]:
    """Return the bytes a run writes, by kind."""
    side, classes = source.image_size, len(source.classes)
    form = label_format(config.label_format, config.label_top or -(-classes // 10))
    few = 16
    views = draw_epoch(0, 0, few, side, (0.08, 1.0), source.flip)
    empty = LabelShard([views], None if form is None else torch.zeros(1, few, classes))
    row = sum(value.numel() * value.element_size() for value in empty.tensors(form).values()) / few
    networks = [_network(spec.architecture or "", source) for spec in specs if spec.architecture]
    teachers = sum(map(_bytes_of, networks))
    teachers += sum(spec.file.stat().st_size for spec in specs if spec.file)
    width = 2 if isinstance(source.train, StreamedImages) else 4
    features = networks[0].feature_dim if networks else 512
    student = _bytes_of(_network(config.student or "", source))
    ground = _groundwork(config, source)
    return {
        "images": count * (side * (3 * side + 1) + 100),  # what PNG takes of noise, at most
        "labels": round(row * count * labelled) + (teachers if form is None else 0),
        "teachers": teachers,
        "pool": len(source.train) * (width * features + 4),
        **({"groundwork": ground} if ground else {}),
        "students": student * (config.students or 1),
    }


def _groundwork(config: Config, source: Source) -> int:
    """Return the bytes of what an engine keeps before the first block."""
    engine, classes = recipe_of(config).engine, len(source.classes)
    if engine is None or not engine.groundwork:
        return 0
    network = engine.rehearsal(classes, source.image_size)
    if network is None:
        return 0
    (extent, *_) = extents(Job(Path(), config), source)
    return engine.groundwork * engine.costs(extent).states * _bytes_of(network)


def _network(name: str, source: Source) -> Classifier:
    """Return an architecture, without its weights where it can be built so."""
    try:
        with torch.device("meta"):
            return build_for(task_of(source), name, 0)
    except (
        RuntimeError,
        UsageError,
    ):  # networks of others are tried on images, which takes weights
        return build_for(task_of(source), name, 0)


def _bytes_of(model: torch.nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _free(out: Path) -> int:
    """Return the bytes free where a folder is or will be."""
    path = out.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _memory_limit(place: Device) -> int:
    if place.torch.type == "cuda":
        return int(torch.cuda.mem_get_info(place.torch)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _problems(made: Plan, config: Config) -> list[str]:
    """Return what does not fit, and the option to change."""
    found = []
    need = sum(made.bytes.values())
    if need > made.free:
        largest = max(made.bytes, key=lambda name: made.bytes[name])
        cure = {
            "labels": "--label-format int4 or topk, --label-keep 0.1, or --label-format online",
            "images": "a lower --ipc or --image-size",
            "pool": "--per-class",
        }.get(largest, "fewer or smaller --teachers")
        found.append(
            f"disk: {need / 1e9:.1f} GB needed, {made.free / 1e9:.1f} GB free; most of it is "
            f"{largest}: try {cure}, or --out on another disk"
        )
    if made.memory and made.memory_limit and made.memory > made.memory_limit:
        cure = "--images-per-pass " + str(max(1, config.images_per_pass // 2))
        found.append(
            f"memory: {made.memory / 1e9:.1f} GB needed, there are {made.memory_limit / 1e9:.1f} "
            f"GB: try {cure}, a lower --image-size, or --stream"
        )
    return found
