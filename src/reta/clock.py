"""Times a few passes of each network of a run on this machine: what a plan is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from reta import models
from reta.config import Config
from reta.data.images import DecodedImages
from reta.data.labels import MICRO_BATCH
from reta.data.sources import Source
from reta.models import Classifier
from reta.parts import EPOCHS_PER_SHARD, Job, Part, class_blocks
from reta.preparation import recipe_of
from reta.progress import track
from reta.runtime import Device, images_per_pass, peak_memory
from reta.squeeze import build_for, committee_of, task_of
from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.batches import Batches
from reta.synthesis.cost import Extent, Forwards, Kind, Looking
from reta.synthesis.engine import Engine
from reta.synthesis.layers import LayerProbe, patch_side
from reta.synthesis.matching import Scene, Turn
from reta.synthesis.pool import Pool
from reta.synthesis.probes import probe
from reta.synthesis.recipe import Recipe
from reta.teachers import TeacherSpec

_TIMED = 2  # repetitions, of which the fastest counts, after one to warm up
_LONG = 1.0  # seconds: what takes longer is not repeated, since warming up is little of it


def extent_of(config: Config, source: Source, classes: int) -> Extent:
    """Return the size of a block of so many classes."""
    real = len(source.train)
    teachers = len(committee_of(config)) if recipe_of(config).committee == "all" else 1
    per_class = real // len(source.classes)
    return Extent(classes, config.ipc, real, per_class, teachers, source.image_size)


def extents(job: Job, source: Source) -> list[Extent]:
    """Return the sizes of all blocks of a run."""
    return [extent_of(job.config, source, len(part.span)) for part in class_blocks(job, source)]


def looks_of(recipe: Recipe, blocks: Iterable[Extent]) -> Iterator[tuple[Looking, Forwards]]:
    """Yield what each part of a recipe asks the teachers before the first step of each block."""
    parts: list[object] = [recipe.start]
    if recipe.engine is None:
        parts += [recipe.objective, recipe.preserve]
    for extent in blocks:
        for part in parts:
            if isinstance(part, Looking):
                yield part, part.looks(extent)


class Clock:
    """Times a few steps of each network of a run on this machine."""

    def __init__(self, config: Config, source: Source, place: Device) -> None:
        """Build the networks of a run, untrained where it would train them."""
        self.config, self.source, self.device = config, source, place.torch
        self.specs = committee_of(config)
        self.teachers = {spec.text: self._built(spec) for spec in self.specs}
        self.images = len(source.classes) * config.ipc
        self.idle, self.held = peak_memory(), 1
        self._images = source.train.pixels(torch.arange(min(64, len(source.train))))

    def _built(self, spec: TeacherSpec) -> Classifier:
        if spec.architecture is None and spec.file is not None:
            return models.read(spec.file)[0].to(self.device)
        return build_for(task_of(self.source), spec.architecture or "", 0).to(self.device)

    def _pixels(self, count: int) -> torch.Tensor:
        chosen = torch.arange(count) % len(self._images)
        return self._images[chosen].to(self.device).float() / 255

    def _seconds(self, work: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) < 1 + _TIMED and sum(times) < _LONG:
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        return min(times[1:] or times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, blocks: list[Part]) -> dict[str, float | None]:
        """Return the seconds of each stage; None where a model that is not ours would be asked."""
        views = self.images * (self.config.label_epochs or 1)
        kept = max(1, round((self.config.label_epochs or 1) * self.config.label_keep))
        timings: dict[str, Callable[[], float | None]] = {
            "squeeze": self.squeeze,
            "pool": self.pool,
            "groundwork": self.groundwork,
            "recover": lambda: self.blocks(blocks),
            "relabel": lambda: self.relabel(self.images * kept),
            "students": lambda: self.students(views),
        }
        shown = track(timings.items(), "timing a few steps of each stage", len(timings))
        times = {name: timing() for name, timing in shown}
        return times | {"measure": (times["pool"] or 0) * self.images / len(self.source.train)}

    def groundwork(self) -> float | None:
        """Return the seconds of what an engine does before the first block."""
        engine = recipe_of(self.config).engine
        if engine is None:
            return None
        found = self.engine(engine, self.extent(len(self.source.classes)))
        return found and found[0]

    def blocks(self, blocks: list[Part]) -> float | None:
        """Return the seconds of recovering all blocks; None if an engine's model is not ours."""
        sizes = [len(part.span) for part in blocks]
        of_size = {size: self.recover(self.extent(size)) for size in sorted(set(sizes))}
        each = [of_size[size] for size in sizes]
        return None if None in each else sum(value or 0 for value in each)

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
        steps = -(-count // batch) * (self.config.teacher_epochs or 1.0)
        return sum(self._training_step(self.teachers[s.text], batch) * steps for s in trained)

    def pool(self) -> float:
        """Return the seconds of one look at all real images."""
        models.freeze(first := next(iter(self.teachers.values())))
        batch = min(len(self.source.train), images_per_pass(self.source.image_size))
        return self._answer(first, batch) * len(self.source.train)

    def extent(self, classes: int) -> Extent:
        """Return the size of a block of so many classes."""
        return extent_of(self.config, self.source, classes)

    def recover(self, extent: Extent) -> float | None:
        """Return the seconds of one block of classes; None if an engine's model is not ours."""
        recipe, config = recipe_of(self.config), self.config
        if recipe.engine is not None:
            times = self.engine(recipe.engine, extent)
            return times and times[1]
        looks = sum(self.look(recipe, passes, extent) for _, passes in looks_of(recipe, [extent]))
        if recipe.schedule is None:
            return looks
        schedule, pull = recipe.schedule, 0.0
        if recipe.topology and config.ipc > 1:
            groups = min(config.ipc, max(1, config.images_per_pass // extent.classes))
            look = self._look_back(groups * extent.classes) * -(-config.ipc // groups)
            pull = look + self._topology(recipe.topology, extent.classes)
            pull /= recipe.topology.interval
        active = sum(schedule.active(step, config.ipc) for step in range(schedule.steps))
        return looks + active / config.ipc * self.step(recipe, extent) + schedule.steps * pull

    def _teachers(self, recipe: Recipe) -> list[Classifier]:
        teachers = [models.freeze(one) for one in self.teachers.values()]
        return teachers if recipe.committee == "all" else teachers[:1]

    def step(self, recipe: Recipe, extent: Extent) -> float:
        """Return the seconds of a step of the loop on a block, all teachers having their turn."""
        classes, ipc = extent.classes, extent.ipc
        pool = self._stand_in(classes)
        probes = [probe(teacher) for teacher in self._teachers(recipe)]
        matcher = recipe.objective.at_work(Scene(probes, pool, range(classes), ipc, 0))
        batches = Batches(recipe.objective.batch, classes, ipc)
        at_once = max(1, self.config.images_per_pass // classes)
        passes = batches.passes(ipc, at_once)
        where, groups = passes[0]
        pixels = self._pixels(ipc * classes).unflatten(0, (ipc, classes))[where].requires_grad_()
        targets = torch.arange(classes, device=self.device)

        def turn(step: int) -> None:
            images, labels = batches.grouped(pixels, where, targets)
            loss, _, _ = matcher(images, Turn(step, labels, groups))
            torch.autograd.grad(loss.sum(), pixels)

        turns = [self._seconds(partial(turn, step)) for step in range(matcher.turns)]
        return len(passes) * sum(turns) / len(turns)

    def _look_back(self, count: int) -> float:
        """Return the seconds of features of so many synthetic images, and their gradient."""
        teacher = models.freeze(next(iter(self.teachers.values())))
        images = self._pixels(count).requires_grad_()
        return self._seconds(lambda: torch.autograd.grad(teacher.features(images).sum(), images))

    def _stand_in(self, classes: int) -> Pool:
        """Return a few real images as if they were of so many classes."""
        count = max(len(self._images), 2 * classes)
        pixels = self._images[torch.arange(count) % len(self._images)]
        images = DecodedImages(pixels, torch.arange(count) % classes, self.source.classes)
        features = torch.randn(count, next(iter(self.teachers.values())).feature_dim)
        return Pool(images, features, torch.ones(count), grey=False)

    def look(self, recipe: Recipe, passes: Forwards, extent: Extent) -> float:
        """Return the seconds of what teachers are asked before the first step."""
        most = min(images_per_pass(extent.image_size), max(1, passes.images))
        times = [self._pass(one, passes.kind, most) for one in self._teachers(recipe)]
        return passes.total / most * sum(times) / len(times)

    def engine(self, engine: Engine, extent: Extent) -> tuple[float, float] | None:
        """Return the seconds of all groundwork, and of a block; None if its model is not ours."""
        network = engine.rehearsal(len(self.source.classes), extent.image_size)
        if network is None:
            return None
        network, costs = network.to(self.device).train(), engine.costs(extent)
        self.held = max(self.held, costs.held)
        times = []
        for part in (costs.unit, costs.block):
            seconds = 0.0
            for passes in part:
                most = min(images_per_pass(extent.image_size), max(1, passes.images))
                seconds += passes.total / most * self._pass(network, passes.kind, most)
            times.append(seconds)
        return engine.groundwork * times[0], times[1]

    def _pass(self, network: nn.Module, kind: Kind, count: int) -> float:
        """Return the seconds of a pass of so many images."""
        images = self._pixels(count)
        if kind == "seen":
            with torch.no_grad():
                return self._seconds(lambda: network(images))
        if kind == "measured" and isinstance(network, Classifier):
            layers = LayerProbe(network, patch_side(self.source.image_size))
            with torch.no_grad():
                return self._seconds(lambda: layers(images[None]))
        images.requires_grad_()
        inputs = [images, *(one for one in network.parameters() if one.requires_grad)]

        def learn() -> None:
            loss = network(images).square().mean()
            twice = kind == "unrolled"
            found = torch.autograd.grad(loss, inputs, create_graph=twice)
            if twice:
                gap = torch.stack([gradient.square().sum() for gradient in found]).sum()
                torch.autograd.grad(gap, images)

        return self._seconds(learn)

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
        base = self.idle
        timed = max(0, peak_memory() - base) * self.held  # a student's steps are held together
        return base + timed + (pixels if on_gpu else pixels + labels + pool)
