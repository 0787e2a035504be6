"""What every method shares and is made once: the data, the frozen committee (squeeze), the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reta.checkpoint import Checkpoint, attempt
from reta.config import SHARE_OF_STEPS, Config, resolve, with_options
from reta.data.images import StreamedImages
from reta.data.sources import Source, open_source
from reta.errors import DataError, unknown
from reta.executor import Executor
from reta.methods import METHODS
from reta.models import Classifier, build, check, file_stem, freeze
from reta.progress import log, warn_once
from reta.runtime import Device, Stopwatch
from reta.storage import RunFolder
from reta.synthesis.pool import MappedFeatures, Pool, look
from reta.synthesis.recipe import Recipe
from reta.tensors import read_tensors, tensor_bytes
from reta.training import Progress, Protocol, train_teacher

IMAGES_PER_SHARD = 32_768  # of the pool of a streamed set: what a killed run does again at most


@dataclass(frozen=True)
class Prepared:
    """What every method shares: the data, the frozen committee and the pool.

    Attributes:
        config: with everything left open chosen.
        source: real images.
        device: where everything runs.
        frozen: the teachers, on the CPU until asked for: they may be on their way elsewhere.
        teachers: SHA-256 of each teacher's file.
        accuracy: of each teacher on unseen real images.
        pool: real images as the first teacher sees them.
    """

    config: Config
    source: Source
    device: Device
    frozen: list[Classifier]
    teachers: dict[str, str]
    accuracy: dict[str, float]
    pool: Pool

    @property
    def committee(self) -> list[Classifier]:
        """The frozen teachers on their device."""
        return [teacher.to(self.device.torch) for teacher in self.frozen]


def recipe_of(config: Config) -> Recipe:
    """Return the recipe a configuration names, with its options applied."""
    if config.method not in METHODS:
        raise unknown("method", config.method, METHODS)
    recipe = METHODS[config.method]
    options: dict[str, Any] = dict(config.options)
    if recipe.schedule:
        share = round(recipe.schedule.steps * SHARE_OF_STEPS[config.effort])
        options = {"schedule.steps": config.steps or share, **options}
    return with_options(recipe, options)


def open_data(config: Config) -> Source:
    """Return the real images of a configuration, after a look at the rest of it.

    A misspelt option should neither cost a teacher nor leave a folder.
    """
    recipe_of(config)
    source = open_source(
        config.data,
        image_size=config.image_size,
        max_size=None if config.effort == "paper" else 64,
        classes=config.classes,
        per_class=config.per_class,
        stream=config.stream,
        workers=config.workers,
    )
    if config.flip is not None:
        source = replace(source, flip=config.flip)
    config = resolve(config, source.image_size)
    for name in (*(config.teachers or ()), config.student):
        check(name or "", source.image_size)
    return source


def prepare(
    config: Config, source: Source, run: RunFolder, place: Device, executor: Executor
) -> Prepared:
    """Train the committee (squeeze) and build the pool, or read them back."""
    config = resolve(config, source.image_size)
    taught = Lesson(run.path, config, source, place)
    names = config.teachers or ()
    executor.run("teacher", train_unit, taught, names)
    executor.check()  # without its committee nothing can go on
    committee: list[Classifier] = []
    hashes, accuracy = {}, {}
    for name in names:
        teacher, record = read_teacher(taught, name)
        if not teacher.batch_norms():
            warn_once(f"teacher {name} has no BatchNorm: its alignment term is 0")
        committee.append(teacher)
        hashes[name] = record["files"][_weights(name)]
        accuracy[name] = record["facts"]["test_accuracy"]
    executor.run("pool", pool_unit, taught, names[:1])
    executor.check()
    pool = open_pool(source, committee[0], hashes, run)
    return Prepared(config, source, place, committee, hashes, accuracy, pool)


@dataclass(frozen=True)
class Lesson:
    """What the units that train a teacher share."""

    path: Path
    config: Config
    source: Source
    device: Device

    def model(self, name: str) -> Classifier:
        """Return an untrained teacher on the CPU."""
        average, spread = self.source.mean_std
        classes, size = len(self.source.classes), self.source.image_size
        seed = self.config.seed
        return build(name, classes, size, mean=average, std=spread, seed=seed)


def _unit(name: str) -> str:
    return f"teacher-{file_stem(name)}"


def _weights(name: str) -> str:
    return f"teachers/{file_stem(name)}.safetensors"


def is_weak(accuracy: float, classes: int) -> bool:
    """Return whether a teacher is hardly better than guessing; its labels would be poor."""
    chance = 1 / classes
    return classes > 1 and accuracy < chance + 0.1 * (1 - chance)


def train_unit(lesson: Lesson, name: str) -> None:
    """Train one teacher as a unit of work."""
    source, seed = lesson.source, lesson.config.seed
    protocol = Protocol(lesson.config.teacher_epochs or 1)
    inputs = {
        "architecture": name,
        "data": source.fingerprint,
        "image_size": source.image_size,
        "flip": source.flip,
        "seed": seed,
        "protocol": asdict(protocol),
    }
    unit = RunFolder(lesson.path).unit(_unit(name), inputs)
    if unit.done:
        return
    watch = Stopwatch()

    def work(checkpoint: Checkpoint) -> tuple[Classifier, Progress]:
        model = lesson.model(name).to(lesson.device.torch)
        progress = train_teacher(
            model,
            source.train,
            source.test,
            protocol,
            flip=source.flip,
            seed=seed,
            checkpoint=checkpoint,
        )
        return model, progress

    (model, progress), failures = attempt(unit, work)
    if is_weak(progress.last, len(source.classes)):
        log.warning(
            "teacher %s recognises %.1f %% of unseen images, chance is %.1f %%: "
            "its labels will be poor; train longer (--teacher-epochs) or check the class folders",
            name,
            100 * progress.last,
            100 / len(source.classes),
        )
    facts = {
        "architecture": name,
        "classes": list(source.classes),
        "test_accuracy": progress.last,
        "epochs": protocol.epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    unit.write(_weights(name), tensor_bytes(model.state_dict(), facts))
    unit.finish(facts | {"curve": progress.curve, "seconds": watch.seconds, "restarts": failures})


def read_teacher(lesson: Lesson, name: str) -> tuple[Classifier, dict[str, Any]]:
    """Return one frozen teacher and the record of its unit."""
    run = RunFolder(lesson.path)
    record = run.finished(_unit(name))
    tensors, facts = read_tensors(run.path / _weights(name))
    if tuple(facts["classes"]) != lesson.source.classes:
        raise DataError(
            f"{_weights(name)}: taught {facts['classes']}, the data has {lesson.source.classes}"
        )
    model = lesson.model(name)
    model.load_state_dict(tensors)
    return freeze(model), record


def pool_unit(lesson: Lesson, name: str) -> None:
    """Look at all real images through one teacher as a unit of work."""
    teacher, record = read_teacher(lesson, name)
    hashes = {name: record["files"][_weights(name)]}
    teacher = teacher.to(lesson.device.torch)
    open_pool(lesson.source, teacher, hashes, RunFolder(lesson.path))


def open_pool(
    source: Source, teacher: Classifier, hashes: Mapping[str, str], run: RunFolder
) -> Pool:
    """Return the pool; the teacher's view of it is kept, the images come from the source.

    Of a streamed set every image is decoded once, in shards that are units of work, and its
    features are kept as float16 and mapped from the disk, so memory does not grow with the set.
    """
    images = source.train
    streamed = isinstance(images, StreamedImages)
    step = IMAGES_PER_SHARD if streamed else max(1, len(images))
    spans = [range(i, min(i + step, len(images))) for i in range(0, len(images), step)]
    shards = [
        _pool_shard(source, teacher, hashes[teacher.name], run, number, span)
        for number, span in enumerate(spans)
    ]
    features = [tensors["features"] for tensors, _ in shards]
    return Pool(
        images,
        MappedFeatures(features) if streamed else features[0],
        torch.cat([tensors["confidence"] for tensors, _ in shards]),
        all(grey for _, grey in shards),
    )


def _pool_shard(
    source: Source, teacher: Classifier, digest: str, run: RunFolder, number: int, span: range
) -> tuple[dict[str, torch.Tensor], bool]:
    """Return one shard of the pool from its file, made first if need be, and whether it is grey."""
    path = f"pool/features-{number:03d}.safetensors"
    inputs = {"data": source.fingerprint, "teacher": digest, "images": [span.start, span.stop]}
    unit = run.unit(f"pool-{number:03d}", inputs)
    if not unit.done:
        watch = Stopwatch()
        streamed = isinstance(source.train, StreamedImages)
        dtype = torch.float16 if streamed else torch.float32
        tensors, grey = look(source.train, teacher, span, dtype)
        facts = {"classes": source.classes, "teacher": teacher.name}
        unit.write(path, tensor_bytes(tensors, facts))
        unit.finish({"images": len(span), "grey": grey, "seconds": watch.seconds})
    tensors, facts = read_tensors(run.path / path)
    if tuple(facts["classes"]) != source.classes:
        raise DataError(
            f"{path}: of the classes {facts['classes']}, the data has {source.classes}; "
            "choose another --out"
        )
    return tensors, unit.facts["grey"]
