"""What a run will take, before anything runs: stages, time, memory, disk, and what does not fit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from reta import models
from reta.config import Config, resolve
from reta.data.formats import label_format
from reta.data.images import StreamedImages
from reta.data.labels import MICRO_BATCH, LabelShard, draw_epoch
from reta.data.sources import Source
from reta.errors import UsageError
from reta.models import Classifier
from reta.pipeline import EPOCHS_PER_SHARD, Job, Part, class_blocks, label_shards
from reta.preparation import open_data, pool_spans, recipe_of
from reta.runtime import Device, choose_device, images_per_pass, peak_memory
from reta.squeeze import build_for, committee_of, task_of
from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.matching import Matching, probe
from reta.teachers import TeacherSpec

_TIMED = 2  # repetitions, of which the fastest counts, after one to warm up


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
    config = resolve(config, source.image_size)
    bare, place = outline(config, source, out), choose_device(device)
    clock = _Clock(config, source, place)
    times = clock.seconds(class_blocks(Job(Path(out), config), source))
    stages = [replace(stage, seconds=times.get(stage.name, 0.0)) for stage in bare.stages]
    made = replace(bare, stages=stages, memory=clock.memory(), memory_limit=_memory_limit(place))
    return replace(made, problems=_problems(made, config))


def outline(config: Config, source: Source, out: Path | str) -> Plan:
    """Return what a run will take as far as it can be known at once, without times and memory."""
    config = resolve(config, source.image_size)
    job, specs, recipe = Job(Path(out), config), committee_of(config), recipe_of(config)
    blocks, shards = class_blocks(job, source), label_shards(job, source)
    count = len(source.classes) * config.ipc
    labelled = sum(len(part.span) for part in shards)
    here = sum(spec.trained_here for spec in specs)
    online = config.label_format == "online"
    ground = recipe.engine.groundwork if recipe.engine else 0
    stages = [
        Stage("begin", 1, "settings"),
        Stage(
            "squeeze",
            len(specs),
            f"{here} of {len(specs)} teachers trained, {config.teacher_epochs} epochs each",
        ),
        Stage("pool", len(pool_spans(source.train)), f"{len(source.train)} real images"),
        *([Stage("groundwork", ground, "networks trained on real images")] if ground else []),
        Stage("recover", len(blocks), f"{count} images, {recipe.steps} steps"),
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
    return {
        "images": count * (side * (3 * side + 1) + 100),  # what PNG takes of noise, at most
        "labels": round(row * count * labelled) + (teachers if form is None else 0),
        "teachers": teachers,
        "pool": len(source.train) * (width * features + 4),
        "students": student * (config.students or 1),
    }


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


def _bytes_of(model: Classifier) -> int:
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


class _Clock:
    """Times a few steps of each network of a run on this machine."""

    def __init__(self, config: Config, source: Source, place: Device) -> None:
        self.config, self.source, self.device = config, source, place.torch
        self.specs = committee_of(config)
        self.teachers = {spec.text: self._built(spec) for spec in self.specs}
        self.images = len(source.classes) * config.ipc
        self._images = source.train.pixels(torch.arange(min(64, len(source.train))))

    def _built(self, spec: TeacherSpec) -> Classifier:
        if spec.architecture is None and spec.file is not None:
            return models.read(spec.file)[0].to(self.device)
        return build_for(task_of(self.source), spec.architecture or "", 0).to(self.device)

    def _pixels(self, count: int) -> torch.Tensor:
        chosen = torch.arange(count) % len(self._images)
        return self._images[chosen].to(self.device).float() / 255

    def _seconds(self, work: Callable[[], object]) -> float:
        times = []
        for _ in range(1 + _TIMED):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, blocks: list[Part]) -> dict[str, float | None]:
        """Return the seconds of each stage; None for what an engine does in a way of its own."""
        config, images, engine = self.config, self.images, recipe_of(self.config).engine
        sizes = {len(part.span) for part in blocks}
        of_size = {size: self.recover(size) for size in sorted(sizes)}
        pool = self.pool()
        kept = max(1, round((config.label_epochs or 1) * config.label_keep))
        return {
            "squeeze": self.squeeze(),
            "pool": pool,
            "groundwork": None,
            "recover": None if engine else sum(of_size[len(part.span)] for part in blocks),
            "relabel": self.relabel(images * kept),
            "measure": pool * images / len(self.source.train),
            "students": self.students(images * (config.label_epochs or 1)),
        }

    def _training_step(self, model: Classifier, batch: int) -> float:
        images = self._pixels(max(2, batch))
        labels = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        model.train().requires_grad_()
        optimiser = torch.optim.AdamW(model.parameters())

        def step() -> None:
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()

        seconds = self._seconds(step)
        models.freeze(model)
        return seconds

    def _answer(self, model: Classifier, batch: int) -> float:
        images = self._pixels(batch)
        with torch.no_grad():
            return self._seconds(lambda: model(images)) / batch

    def squeeze(self) -> float:
        """Return the seconds of training the teachers that are trained here."""
        trained = [spec for spec in self.specs if spec.trained_here]
        count = len(self.source.train)
        batch = min(128, max(16, count // 10))
        steps = -(-count // batch) * (self.config.teacher_epochs or 1)
        return sum(self._training_step(self.teachers[s.text], batch) * steps for s in trained)

    def pool(self) -> float:
        """Return the seconds of one look at all real images."""
        models.freeze(first := next(iter(self.teachers.values())))
        batch = min(len(self.source.train), images_per_pass(self.source.image_size))
        return self._answer(first, batch) * len(self.source.train)

    def recover(self, classes: int) -> float:
        """Return the seconds of one block of classes."""
        recipe, config = recipe_of(self.config), self.config
        if recipe.schedule is None:
            return 0.0
        groups = min(config.ipc, max(1, config.images_per_pass // classes))
        packs = -(-config.ipc // groups)
        teachers = list(self.teachers.values())[: None if recipe.committee == "all" else 1]
        times = [self._matching(recipe.objective, one, groups, classes) for one in teachers]
        step = packs * sum(times) / len(times)
        pull = 0.0
        if recipe.topology and config.ipc > 1:
            pull = (packs * times[0] + self._topology(recipe.topology, classes)) / (
                recipe.topology.interval
            )
        return recipe.schedule.steps * (step + pull)

    def _matching(
        self, objective: Matching, teacher: Classifier, groups: int, classes: int
    ) -> float:
        look = probe(models.freeze(teacher))
        labels = torch.arange(classes, device=self.device)
        images = self._pixels(groups * classes).unflatten(0, (groups, classes)).requires_grad_()

        def step() -> None:
            torch.autograd.grad(objective(look, images, labels)[0].sum(), images)

        return self._seconds(step)

    def _topology(self, topology: TopologyAlignment, classes: int) -> float:
        few, points = min(classes, 4), min(self.config.ipc, topology.points)
        generator = torch.Generator().manual_seed(0)
        shape = (few, points, next(iter(self.teachers.values())).feature_dim)
        features = torch.randn(shape, generator=generator).to(self.device)
        real = torch.randn((topology.draws, *shape), generator=generator).to(self.device)
        target = topology.target(real)
        return self._seconds(lambda: topology.gradient(features, target)) * classes / few

    def relabel(self, views: int) -> float:
        """Return the seconds of the committee's answers to so many views."""
        if self.config.label_format == "online":
            return 0.0
        batch = images_per_pass(self.source.image_size)
        return views * sum(self._answer(models.freeze(t), batch) for t in self.teachers.values())

    def students(self, views: int) -> float:
        """Return the seconds of training all students on so many views each."""
        model = build_for(task_of(self.source), self.config.student or "", 0).to(self.device)
        step = self._training_step(model, MICRO_BATCH)
        return step * views / MICRO_BATCH * (self.config.students or 1)

    def memory(self) -> int:
        """Return the peak: what the timed steps took, and what a run holds besides."""
        side, classes, images = self.source.image_size, len(self.source.classes), self.images
        epochs = min(EPOCHS_PER_SHARD, self.config.label_epochs or 1)
        pixels = images * 3 * side**2 * 4 * 6  # pixels, gradient, Adam's moments, two copies
        labels = images * epochs * classes * 4
        pool = len(self.source.train) * next(iter(self.teachers.values())).feature_dim * 4
        on_gpu = self.device.type == "cuda"
        return peak_memory() + (pixels if on_gpu else pixels + labels + pool)
