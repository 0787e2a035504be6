"""What every method shares and is made once: the data, the frozen committee (squeeze), the pool."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from reta.config import SHARE_OF_STEPS, Config, resolve, with_options
from reta.data.images import ImageSet, StreamedImages
from reta.data.sources import Source, open_source
from reta.errors import DataError, unknown
from reta.executor import Executor
from reta.methods import METHODS
from reta.models import Classifier, check, preferred_layout
from reta.progress import warn_once
from reta.runtime import Device, Stopwatch
from reta.space import pool_bytes
from reta.squeeze import Lesson, committee_of, read_teacher, task_of, teacher_unit, weights_file
from reta.storage import RunFolder, json_bytes
from reta.synthesis.pool import MappedFeatures, Pool, look
from reta.synthesis.recipe import Recipe
from reta.tensors import read_tensors, tensor_bytes

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
        warnings: what a reader of the results should know of the teachers, in sentences.
        epochs: for which each teacher learned, of those trained here.
    """

    config: Config
    source: Source
    device: Device
    frozen: list[Classifier]
    teachers: dict[str, str]
    accuracy: dict[str, float]
    pool: Pool
    warnings: tuple[str, ...] = ()
    epochs: Mapping[str, float] = field(default_factory=dict)

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
    share = SHARE_OF_STEPS[config.effort]
    if recipe.engine is not None:
        recipe = replace(recipe, engine=recipe.engine.scaled(share))
        options = {"engine.steps": config.steps or recipe.steps, **options}
    elif recipe.schedule:
        options = {"schedule.steps": config.steps or round(recipe.steps * share), **options}
    return with_options(recipe, options)


def open_data(config: Config, manifest: Mapping[str, Any] | None = None) -> Source:
    """Return the real images of a configuration, after a look at the rest of it.

    A misspelt option should neither cost a teacher nor leave a folder.

    Args:
        config: the settings.
        manifest: of a run made from these images, which knows those that were left out.
    """
    left_out = None
    if manifest is not None:
        known = manifest["data"].get("left_out", [])
        left_out = [f"{image['part']} {image['key']}" for image in known]
    recipe_of(config)
    source = open_source(
        config.data,
        image_size=config.image_size,
        max_size=None if config.effort == "paper" else 64,
        classes=config.classes,
        per_class=config.per_class,
        test_per_class=config.test_per_class,
        stream=config.stream,
        workers=config.workers,
        bad_images=config.bad_images,
        left_out=left_out,
        root=config.root,
        download=config.download,
    )
    if config.flip is not None:
        source = replace(source, flip=config.flip)
    config = resolve(config, *source.shape)
    for spec in committee_of(config):
        spec.check(source.image_size)
    check(config.student or "", source.image_size)
    return source


def prepare(
    config: Config, source: Source, run: RunFolder, place: Device, executor: Executor
) -> Prepared:
    """Train the committee (squeeze) or let it in, and build the pool, or read them back."""
    config = resolve(config, *source.shape)
    keep_bad_images(run, config, source)
    taught = Lesson(run.path, config, source, place)
    specs = committee_of(config)
    executor.run("teacher", teacher_unit, taught, specs)
    executor.check()  # without its committee nothing can go on
    committee: list[Classifier] = []
    hashes, accuracy, epochs, warnings = {}, {}, {}, []
    for spec in specs:
        teacher, record = read_teacher(taught, spec)
        if not teacher.batch_norms():
            warn_once(f"teacher {spec.name} has no BatchNorm: its alignment term is 0")
            warnings.append(f"Teacher {spec.name} has no BatchNorm, so its alignment term is 0.")
        warnings += record["facts"]["warnings"]
        committee.append(teacher.to(memory_format=preferred_layout(teacher)))
        hashes[spec.name] = record["files"][weights_file(spec)]
        accuracy[spec.name] = record["facts"]["test_accuracy"]
        if "epochs" in record["facts"]:
            epochs[spec.name] = record["facts"]["epochs"]
    executor.run("pool", pool_unit, taught, pool_spans(source.train))
    executor.check()
    pool = open_pool(source, committee[0], next(iter(hashes.values())), run)
    return Prepared(
        config, source, place, committee, hashes, accuracy, pool, tuple(warnings), epochs
    )


def pool_spans(images: ImageSet) -> list[range]:
    """Return the shards of the pool: many of a streamed set, one of a set in memory."""
    step = IMAGES_PER_SHARD if isinstance(images, StreamedImages) else max(1, len(images))
    return [range(i, min(i + step, len(images))) for i in range(0, len(images), step)]


def keep_bad_images(run: RunFolder, config: Config, source: Source) -> None:
    """Copy the images that were left out into the run folder, where the settings say so."""
    if config.bad_images != "quarantine" or not source.left_out:
        return
    facts = [image.facts() for image in source.left_out]
    unit = run.unit("quarantine", facts)
    if unit.done:
        return
    for number, image in enumerate(source.left_out):
        with suppress(DataError):  # a file that cannot even be read is listed only
            name = re.sub(r"[^\w.+-]+", "_", image.key)[-80:]
            unit.write(f"quarantine/{number:04d}-{name}", image.content())
    unit.write("quarantine/images.json", json_bytes(facts))
    unit.finish({"images": len(facts)})


def pool_unit(lesson: Lesson, span: range) -> None:
    """Look at a shard of the real images through the first teacher as a unit of work."""
    spec = committee_of(lesson.config)[0]
    teacher, record = read_teacher(lesson, spec)
    teacher = teacher.to(lesson.device.torch)
    digest, run = record["files"][weights_file(spec)], RunFolder(lesson.path)
    number = pool_spans(lesson.source.train).index(span)
    _pool_shard(lesson.source, teacher, digest, run, number, span)


def open_pool(source: Source, teacher: Classifier, digest: str, run: RunFolder) -> Pool:
    """Return the pool; the teacher's view of it is kept, the images come from the source.

    Of a streamed set every image is decoded once, in shards that are units of work, and its
    features are kept as float16 and mapped from the disk, so memory does not grow with the set.
    """
    images = source.train
    streamed = isinstance(images, StreamedImages)
    shards = [
        _pool_shard(source, teacher, digest, run, number, span)
        for number, span in enumerate(pool_spans(images))
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
        unit.require_space(pool_bytes(len(span), teacher.feature_dim, dtype.itemsize))
        tensors, grey = look(source.train, teacher, span, dtype)
        facts = asdict(task_of(source)) | {"teacher": teacher.name}
        unit.write(path, tensor_bytes(tensors, facts))
        unit.finish({"images": len(span), "grey": grey, "seconds": watch.seconds})
    tensors, facts = read_tensors(run.path / path)
    task_of(source).check(path, facts)
    return tensors, unit.facts["grey"]
