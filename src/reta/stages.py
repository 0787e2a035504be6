"""The work of each part: groundwork, recover, relabel, measure.

Each function does one unit of work of a run folder, so it can be called again after an
interruption: what is done is not done twice. `Config` ends here: nothing below receives it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from reta.checkpoint import Checkpoint, attempt
from reta.config import Config, describe
from reta.data.distilled import image_name, read_images, teacher_name
from reta.data.formats import Top, label_format
from reta.data.sources import Source
from reta.errors import UsageError
from reta.evaluation.geometry import measure
from reta.models import model_bytes
from reta.parts import (
    Job,
    Part,
    block_name,
    class_blocks,
    class_folders,
    ground_file,
    ground_name,
    groundwork,
    label_shards,
    shard_name,
    whole_set,
)
from reta.preparation import Prepared, recipe_of
from reta.runtime import Stopwatch, peak_memory
from reta.space import block_bytes, shard_bytes
from reta.squeeze import task_of
from reta.storage import RunFolder, Unit, json_bytes
from reta.synthesis.engine import Recovered, Settings, Tensors, Work
from reta.synthesis.history import history_sheet
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from reta.synthesis.relabel import relabel
from reta.tensors import png_bytes, png_files, read_tensors, tensor_bytes


def _inputs(prepared: Prepared, part: Part) -> dict[str, Any]:
    """Return everything that the images of some classes depend on."""
    config, source = part.job.config, prepared.source
    recipe = recipe_of(config)
    given = recipe.engine.given() if recipe.engine else {}
    return {
        "recipe": describe(recipe),
        **({"given": dict(given)} if given else {}),
        **({"compiled": True} if config.compiled and recipe.schedule else {}),
        "ipc": config.ipc,
        "seed": config.seed,
        "flip": source.flip,
        "data": source.fingerprint,
        "teachers": prepared.teachers,
        "labels": list(part.span),
    }


def _settings(prepared: Prepared, config: Config) -> Settings:
    flip = prepared.source.flip
    return Settings(config.ipc, config.seed, flip, config.images_per_pass, config.compiled)


def lay_groundwork(prepared: Prepared, part: Part) -> None:
    """Do a part of an engine's groundwork as a unit of work: MTT's experts, say."""
    config, pool = part.job.config, prepared.pool
    recipe = recipe_of(config)
    unit = part.job.folder.unit(ground_name(part.index), _inputs(prepared, part))
    if unit.done or recipe.engine is None:
        return
    engine, watch, settings = recipe.engine, Stopwatch(), _settings(prepared, config)
    work = Work(prepared.committee, pool, part.span, settings, recipe.start)
    tensors, failures = attempt(
        unit,
        lambda checkpoint: engine.lay(part.index, replace(work, checkpoint=checkpoint)),
    )
    unit.write(ground_file(part.index), tensor_bytes(tensors, asdict(task_of(prepared.source))))
    unit.finish({"seconds": watch.seconds, "restarts": failures})


def _laid(prepared: Prepared, job: Job) -> list[Tensors]:
    """Return the groundwork of a job."""
    task = task_of(prepared.source)
    found: list[Tensors] = []
    for part in groundwork(job, prepared.source):
        job.folder.finished(ground_name(part.index))
        path = job.path / ground_file(part.index)
        tensors, facts = read_tensors(path)
        task.check(str(path), facts)
        found.append(tensors)
    return found


def recover_block(prepared: Prepared, part: Part) -> None:
    """Recover one class block as a unit of work."""
    config, source, labels = part.job.config, prepared.source, part.span
    recipe, settings = recipe_of(config), _settings(prepared, config)
    unit = part.job.folder.unit(block_name(part.index), _inputs(prepared, part))
    if unit.done:
        return
    unit.require_space(block_bytes(len(labels), config.ipc, source.image_size))
    laid = _laid(prepared, part.job)
    result, failures = attempt(
        unit,
        lambda checkpoint: recover(
            recipe, prepared.committee, prepared.pool, labels, settings, checkpoint, laid
        ),
    )
    folders = class_folders(source.classes)
    names = [image_name(folders[label], number) for label in labels for number in range(config.ipc)]
    for name, png in zip(names, png_files(result.images.flatten(0, 1)), strict=True):
        unit.write(name, png)
    history = _write_history(unit, result, prepared.pool, labels, folders)
    unit.finish(
        {
            "labels": list(labels),
            "seconds": result.seconds,
            "steps": result.steps,
            "connections": result.connections,
            "anchors": [anchors.tolist() for anchors in result.anchors],
            "history": history,
            "peak_memory": peak_memory(),
            "restarts": failures,
            "images_per_pass": result.images_per_pass,
        }
    )


def _write_history(
    unit: Unit, result: Recovered, pool: Pool, labels: range, folders: Sequence[str]
) -> dict[str, Any]:
    """Write a picture of each class's way from start to end; return what its columns are."""
    facts: dict[str, Any] = {}
    for position, label in enumerate(labels):
        sheet, facts = history_sheet(result, pool, position)
        unit.write(f"history/{folders[label]}.png", png_bytes(sheet))
    return facts


def _recovered(prepared: Prepared, job: Job) -> tuple[torch.Tensor, dict[str, str]]:
    """Return all synthetic images ``(classes, ipc, 3, s, s)``, and the hashes of their files."""
    run = job.folder
    records = [run.finished(block_name(part.index)) for part in class_blocks(job, prepared.source)]
    files = {name: digest for record in records for name, digest in record["files"].items()}
    images = read_images(run.path, class_folders(prepared.source.classes), job.config.ipc)
    return images, files


def label_shard(prepared: Prepared, part: Part) -> None:
    """Write some epochs of soft labels as a unit of work."""
    config, source, span = part.job.config, prepared.source, part.span
    images, files = _recovered(prepared, part.job)
    top = config.label_top or -(-len(source.classes) // 10)
    form = label_format(config.label_format, top)
    facts: dict[str, Any] = asdict(task_of(source)) | {"format": config.label_format}
    if isinstance(form, Top):
        facts["top"] = top
    weights = recipe_of(config).votes.of(prepared.committee, prepared.pool, config.seed)
    if weights is not None:
        if form is None:
            raise UsageError("votes.weights=prior needs labels that are stored: --label-format")
        facts["weights"] = weights
    if form is None and part.index == 0:
        _write_teachers(prepared, part.job.folder)
    inputs = {
        "images": files,
        "teachers": prepared.teachers,
        "epochs": [span.start, span.stop],
        "seed": config.seed,
        "facts": facts,
        "flip": source.flip,
    }
    unit = part.job.folder.unit(shard_name(part.index), inputs)
    if unit.done:
        return
    unit.require_space(shard_bytes(len(span), len(images.flatten(0, 1)), form, len(source.classes)))
    watch = Stopwatch()
    shard = relabel(
        prepared.committee,
        images.flatten(0, 1),
        span,
        seed=config.seed,
        flip=source.flip,
        weights=weights,
        online=form is None,
        checkpoint=Checkpoint(unit),
    )
    tensors = tensor_bytes(shard.tensors(form), facts)
    unit.write(f"labels/views-{part.index:03d}.safetensors", tensors)
    unit.finish({"seconds": watch.seconds})


def _write_teachers(prepared: Prepared, run: RunFolder) -> None:
    """Put the teachers beside labels without logits, so that the set is complete by itself."""
    unit = run.unit("labels-teachers", {"teachers": prepared.teachers})
    if unit.done:
        return
    task = task_of(prepared.source)
    for index, teacher in enumerate(prepared.committee):
        unit.write(teacher_name(index), model_bytes(teacher, task.under(teacher)))
    unit.finish()


def measure_set(prepared: Prepared, part: Part) -> None:
    """Measure the geometry of a distilled set as a unit of work."""
    images, files = _recovered(prepared, part.job)
    inputs = {"images": files, "teachers": prepared.teachers}
    unit = part.job.folder.unit("geometry", inputs)
    if unit.done:
        return
    measured = measure(prepared.committee[0], prepared.pool, images, part.span)
    unit.write("geometry.json", json_bytes(measured))
    unit.finish()


# What is done with every job: the stage, its function, and the parts it comes in.
STAGES: Sequence[
    tuple[str, Callable[[Prepared, Part], None], Callable[[Job, Source], list[Part]]]
] = (
    ("groundwork", lay_groundwork, groundwork),
    ("recover", recover_block, class_blocks),
    ("label", label_shard, label_shards),
    ("measure", measure_set, whole_set),
)
