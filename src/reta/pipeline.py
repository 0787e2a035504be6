"""From prepared data to a distilled set: recover, relabel, measure, seal.

The work is cut into units that are kept in the run folder, so each function here can be called
again after an interruption and continues. `Config` ends here: nothing below receives it whole.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from reta import __version__
from reta.config import Config, describe, from_yaml, to_yaml
from reta.data.distilled import image_name, read_images
from reta.data.sources import Source
from reta.errors import UsageError
from reta.evaluation.geometry import measure
from reta.preparation import Prepared, is_weak, open_data, prepare, recipe_of
from reta.progress import track
from reta.runtime import Stopwatch, choose_device, hardware, peak_memory
from reta.storage import RunFolder, Unit, json_bytes
from reta.synthesis.history import history_sheet
from reta.synthesis.loop import Recovered, Settings, recover
from reta.synthesis.pool import Pool
from reta.synthesis.recipe import Recipe
from reta.synthesis.relabel import relabel
from reta.tensors import png_bytes, tensor_bytes

CLASSES_PER_BLOCK = 100
EPOCHS_PER_SHARD = 50
# Settings that say where the images lie (their fingerprint is compared), how students are trained,
# or how much fits in memory; not what the set is.
_FREE = ("data", "student", "students", "learning_rate", "stretch", "images_per_pass")


def distill(config: Config, out: Path | str, device: str = "auto") -> Path:
    """Distil a data set into a run folder: images, soft labels and how they came about.

    Args:
        config: the settings.
        out: the run folder; if it holds an unfinished run of the same settings, that continues.
        device: ``auto``, ``cpu``, ``cuda`` ….

    Returns:
        The run folder.
    """
    place = choose_device(device)
    source = open_data(config)
    run = RunFolder(out)
    with run.locked():
        keep_config(run, config, source)
        return distill_prepared(prepare(config, source, run, place), run)


def keep_config(run: RunFolder, config: Config, source: Source) -> None:
    """Write the settings into a run folder, or refuse if it was begun with others.

    The images may move to another place, but not change. A folder in which nothing was finished
    yet takes any settings.
    """
    record = run.record("config")
    if record and set(run.records()) > {"config"}:
        if record["facts"].get("fingerprint") != source.fingerprint:
            raise UsageError(
                f"{run.path} was begun with other images than {config.data} holds now; "
                "choose another --out"
            )
        old, new = describe(from_yaml(run.path / "config.yaml")), describe(config)
        changed = [key for key in new if new[key] != old[key] and key not in _FREE]
        if changed:
            key = changed[0]
            raise UsageError(
                f"{run.path} was begun with {key} = {old[key]!r}, not {new[key]!r}; "
                "choose another --out, or the same settings to continue"
            )
    unit = run.unit("config", describe(config))
    if not unit.done:
        unit.write("config.yaml", to_yaml(config))
        unit.finish({"fingerprint": source.fingerprint})


def distill_prepared(prepared: Prepared, run: RunFolder) -> Path:
    """Recover, relabel and measure one method in its own folder; then seal the folder."""
    config, source = prepared.config, prepared.source
    recipe = recipe_of(config)
    count = len(source.classes)
    folders = class_folders(source.classes)
    blocks = class_blocks(count)
    units = [
        _recover_block(prepared, recipe, run, index, block, folders)
        for index, block in enumerate(blocks)
    ]
    images = read_images(run.path, folders, config.ipc)
    files = {name: digest for unit in units for name, digest in unit.files.items()}
    _relabel(prepared, run, images.flatten(0, 1), files)
    geometry = run.unit("geometry", {"images": files, "teachers": prepared.teachers})
    if not geometry.done:
        measured = measure(prepared.committee[0], prepared.pool, images, range(count))
        geometry.write("geometry.json", json_bytes(measured))
        geometry.finish()
    seal(run, prepared, recipe, folders)
    return run.path


def class_blocks(count: int) -> list[range]:
    """Return blocks of at most 100 classes, as equal as can be.

    A block is also a BN group, so 101 classes become 51 and 50 and not 100 and a lonely one.
    """
    blocks = -(-count // CLASSES_PER_BLOCK)
    bounds = [index * count // blocks for index in range(blocks + 1)]
    return [range(begin, end) for begin, end in pairwise(bounds)]


def _recover_block(
    prepared: Prepared,
    recipe: Recipe,
    run: RunFolder,
    index: int,
    labels: range,
    folders: Sequence[str],
) -> Unit:
    """Recover one class block as a unit of work."""
    config, source = prepared.config, prepared.source
    settings = Settings(config.ipc, config.seed, source.flip, config.images_per_pass)
    inputs = {
        "recipe": describe(recipe),
        "ipc": config.ipc,
        "seed": config.seed,
        "flip": source.flip,
        "data": source.fingerprint,
        "teachers": prepared.teachers,
        "labels": list(labels),
    }
    unit = run.unit(f"recover-{index:03d}", inputs)
    if unit.done:
        return unit
    result = recover(recipe, prepared.committee, prepared.pool, labels, settings)
    for label, own in zip(labels, result.images, strict=True):
        for number, image in enumerate(own):
            unit.write(image_name(folders[label], number), png_bytes(image))
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
        }
    )
    return unit


def _write_history(
    unit: Unit, result: Recovered, pool: Pool, labels: range, folders: Sequence[str]
) -> dict[str, Any]:
    """Write a picture of each class's way from start to end; return what its columns are."""
    facts: dict[str, Any] = {}
    for position, label in enumerate(labels):
        sheet, facts = history_sheet(result, pool, position)
        unit.write(f"history/{folders[label]}.png", png_bytes(sheet))
    return facts


def _relabel(
    prepared: Prepared, run: RunFolder, images: torch.Tensor, files: Mapping[str, str]
) -> None:
    """Write the soft labels, a shard of epochs at a time."""
    config, source = prepared.config, prepared.source
    epochs = config.label_epochs or 1
    shards = range(0, epochs, EPOCHS_PER_SHARD)
    for begin in track(shards, "relabel: soft labels", len(shards)):
        span = range(begin, min(begin + EPOCHS_PER_SHARD, epochs))
        index = begin // EPOCHS_PER_SHARD
        inputs = {
            "images": dict(files),
            "teachers": prepared.teachers,
            "epochs": [span.start, span.stop],
            "seed": config.seed,
            "format": config.label_format,
            "flip": source.flip,
        }
        unit = run.unit(f"labels-{index:03d}", inputs)
        if unit.done:
            continue
        watch = Stopwatch()
        shard = relabel(prepared.committee, images, span, seed=config.seed, flip=source.flip)
        tensors = shard.tensors(config.label_format)
        facts = {"classes": list(source.classes), "format": config.label_format}
        unit.write(f"labels/views-{index:03d}.safetensors", tensor_bytes(tensors, facts))
        unit.finish({"seconds": watch.seconds})


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return a folder name for each class, safe on any system, that sorts in class order."""
    safe = [re.sub(r"[^\w.+-]+", "_", name).strip(".") or "class" for name in classes]
    if safe == list(classes) and safe == sorted(safe) and len(set(safe)) == len(safe):
        return safe
    width = len(str(len(classes) - 1))
    return [f"{index:0{width}d}_{name}"[:100] for index, name in enumerate(safe)]


def cautions(prepared: Prepared) -> list[str]:
    """Return what a reader of the results should know, in sentences."""
    source, ipc = prepared.source, prepared.config.ipc
    said = [
        f"Teacher {name} recognises only {100 * value:.0f} % of unseen images."
        for name, value in prepared.accuracy.items()
        if is_weak(value, len(source.classes))
    ]
    said += [
        f"Teacher {teacher.name} has no BatchNorm, so its alignment term is 0."
        for teacher in prepared.committee
        if not teacher.batch_norms()
    ]
    counts = source.train.labels.bincount(minlength=len(source.classes)).tolist()
    few = [name for name, count in zip(source.classes, counts, strict=True) if count <= ipc]
    if few:
        said.append(f"No more real images than synthetic ones in: {', '.join(few[:5])}.")
    if len(source.test) < 100:
        said.append(f"Accuracy is measured on {len(source.test)} images only.")
    if prepared.config.effort == "smoke":
        said.append("Effort smoke: everything was cut short, only to see it run.")
    return said


def data_facts(source: Source) -> dict[str, Any]:
    """Return what a manifest says of the real images."""
    average, spread = source.mean_std
    return {
        "name": source.name,
        "note": source.note,
        "fingerprint": source.fingerprint,
        "train": len(source.train),
        "test": len(source.test),
        "image_size": source.image_size,
        "flip": source.flip,
        "mean": list(average),
        "std": list(spread),
    }


def seal(run: RunFolder, prepared: Prepared, recipe: Recipe, folders: Sequence[str]) -> None:
    """Write the manifest of a finished run."""
    config, source = prepared.config, prepared.source
    run.seal(
        {
            "reta": __version__,
            "method": config.method,
            "summary": recipe.summary,
            "source": recipe.source,
            "recipe": describe(recipe),
            "data": data_facts(source),
            "classes": list(source.classes),
            "folders": list(folders),
            "ipc": config.ipc,
            "seed": config.seed,
            "teachers": prepared.teachers,
            "teacher_accuracy": prepared.accuracy,
            "warnings": cautions(prepared),
            "hardware": hardware(),
            "device": asdict(prepared.device),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
