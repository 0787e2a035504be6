"""From settings to a distilled set: open the run folder, do the stages, seal.

What a run is cut into is in `parts`, what is done with each part in `stages`. Calling again after
an interruption continues.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reta import __version__
from reta.config import Config, describe, from_yaml, resolve, to_yaml
from reta.data.formats import label_format
from reta.data.sources import Source
from reta.errors import UsageError
from reta.executor import Executor, Serial
from reta.files import require_space
from reta.mirror import local
from reta.parts import Job, block_name, class_blocks, class_folders, label_shards, shard_name
from reta.preparation import Prepared, open_data, prepare, recipe_of
from reta.progress import log, show_progress
from reta.reporting import write_card
from reta.runtime import choose_device, hardware, precision_asked
from reta.space import block_bytes, shard_bytes
from reta.squeeze import Lesson, train_together
from reta.stages import STAGES
from reta.storage import RunFolder
from reta.team import assembled

# Settings that say where the images lie (their fingerprint is compared), how students are trained,
# or how much fits in memory; not what the set is.
_STUDENTS = ("student", "students", "protocol", "labels", "learning_rate", "stretch")
_FREE = ("data", *_STUDENTS, "images_per_pass", "workers", "root", "download")


def distill(
    config: Config,
    out: Path | str,
    device: str = "auto",
    executor: Executor | None = None,
    force: bool = False,
    announce: Callable[[Config, Source, Path], None] | None = None,
) -> Path:
    """Distil a data set into a run folder: images, soft labels and how they came about.

    Args:
        config: the settings.
        out: the run folder; if it holds an unfinished run of the same settings, that continues.
        device: ``auto``, ``cpu``, ``cuda`` ….
        executor: where the units of work are done; in this process by default.
        force: begin a new folder beside one that was begun with other settings, see `run_folder`.
        announce: called with the settings, the images and the folder before anything is made.

    Returns:
        The run folder.
    """
    executor = executor or Serial()
    place = executor.device(device)
    source = open_data(config)
    run = run_folder(out, config, source, force)
    if announce:
        announce(config, source, run.path)
    with run.locked():
        keep_config(run, config, source)
        prepared = prepare(config, source, run, place, executor)
        distill_jobs(prepared, [Job(run.path, prepared.config)], executor)
    executor.check()
    return run.path


def squeeze(config: Config, out: Path | str, device: str = "auto", force: bool = False) -> Path:
    """Train the committee of a run, with all processes that torchrun started.

    `distill` with the same settings finds it done and goes on; without torchrun this is its first
    stage alone.

    Args:
        config: the settings.
        out: the run folder; only the first process writes there.
        device: ``auto``, ``cpu``, ``cuda`` ….
        force: begin a new folder beside one that was begun with other settings, see `run_folder`.

    Returns:
        The run folder.
    """
    with assembled(device) as team:
        place, source = choose_device(device), open_data(config)
        full = resolve(config, *source.shape)
        if team.rank:
            show_progress(False)
            log.setLevel("ERROR")  # what there is to say, the leader says
            with TemporaryDirectory(prefix="reta-") as folder:
                train_together(Lesson(Path(folder), full, source, place), team)
            return local(out)
        run = run_folder(out, config, source, force)
        with run.locked():
            keep_config(run, config, source)
            train_together(Lesson(run.path, full, source, place), team)
        return run.path


def run_folder(
    out: Path | str,
    config: Config,
    source: Source,
    force: bool = False,
    inside: Mapping[str, Config] | None = None,
) -> RunFolder:
    """Return the folder of a run; with force, beside one that was begun with other settings.

    Args:
        out: the folder.
        config: the settings.
        source: the real images.
        force: if the folder was begun with other settings or images, take the first of ``out-2``,
            ``out-3`` … that was begun with these, or was not begun at all. Nothing is ever mixed.
        inside: settings of the runs in folders inside, for a comparison.

    Raises:
        UsageError: if one of them was begun with other settings, and nothing is forced.
    """
    run = RunFolder(out)
    numbers = count(2)

    def refused() -> str | None:
        nested = ((RunFolder(run.path / name), own) for name, own in (inside or {}).items())
        reasons = (refusal(*one, source) for one in [(run, config), *nested])
        return next((reason for reason in reasons if reason is not None), None)

    while reason := refused():
        if not force:
            raise UsageError(reason)
        run = RunFolder(f"{out}-{next(numbers)}")
    return run


def refusal(run: RunFolder, config: Config, source: Source) -> str | None:
    """Return why a folder cannot be continued with some settings; None if it can.

    The images may move to another place, but not change. A folder in which nothing was finished
    yet takes any settings.
    """
    record = run.record("config")
    if not record or set(run.records()) <= {"config"}:
        return None
    fix = "choose another --out, or --force to begin a new folder beside it"
    if record["facts"].get("fingerprint") != source.fingerprint:
        return f"{run.path} was begun with other images than {config.data} holds now; {fix}"
    was, now = record["facts"].get("precision", ""), precision_asked()
    if was != now:
        return f"{run.path} was begun with RETA_PRECISION = {was!r}, not {now!r}; {fix}"
    run.bring(record["files"])
    old, new = _named(from_yaml(run.path / "config.yaml")), _named(config)
    for key in [*new, *(old.keys() - new.keys())]:
        was, now = (values.get(key, "its default") for values in (old, new))
        if was != now and key not in _FREE:
            return f"{run.path} was begun with {key} = {was!r}, not {now!r}; {fix}"
    return None


def _named(config: Config) -> dict[str, Any]:
    """Return every setting by its name, those of the method by their dotted names."""
    values: dict[str, Any] = describe(config)
    options: dict[str, Any] = values.pop("options")
    return values | options


def keep_config(run: RunFolder, config: Config, source: Source) -> None:
    """Write the settings into a run folder, or refuse if it was begun with others, by name.

    Raises:
        UsageError: see `refusal`.
    """
    refused = refusal(run, config, source)
    if refused:
        raise UsageError(refused)
    facts = {"fingerprint": source.fingerprint}
    if precision_asked():
        facts["precision"] = precision_asked()
    unit = run.unit("config", describe(config) | facts)
    if not unit.done:
        unit.write("config.yaml", to_yaml(config))
        unit.finish(facts)


def distill_jobs(prepared: Prepared, jobs: Sequence[Job], executor: Executor) -> list[Job]:
    """Recover, relabel and measure, each job in its own folder; seal and return the whole ones.

    A job of which a unit was given up stops there; the others go on.
    """
    whole = list(jobs)
    for job in whole:
        require_space(job.path, _bytes_to_write(job, prepared.source))
    for said in dict.fromkeys(anchors_caution(prepared, job.config) for job in whole):
        if said:
            log.info(said)
    for stage, work, parts in STAGES:
        units = [part for job in whole for part in parts(job, prepared.source)]
        broken = {unit.job.path for unit in executor.run(stage, work, prepared, units)}
        whole = [job for job in whole if job.path not in broken]
    for job in whole:
        seal(job, prepared)
        job.folder.bring()
        job.folder.send([write_card(job.path).name])
    return whole


def _bytes_to_write(job: Job, source: Source) -> int:
    """Return the most bytes of the blocks and shards of a job that are not there yet."""
    config, classes, folder = job.config, len(source.classes), job.folder
    form = label_format(config.label_format, config.label_top or -(-classes // 10))
    blocks, shards = class_blocks(job, source), label_shards(job, source)
    return sum(
        block_bytes(len(part.span), config.ipc, source.image_size)
        for part in blocks
        if not folder.record_path(block_name(part.index)).exists()
    ) + sum(
        shard_bytes(len(part.span), classes * config.ipc, form, classes)
        for part in shards
        if not folder.record_path(shard_name(part.index)).exists()
    )


def cautions(prepared: Prepared, config: Config) -> list[str]:
    """Return what a reader of the results should know, in sentences."""
    source, ipc = prepared.source, config.ipc
    said = list(prepared.warnings)
    counts = source.train.labels.bincount(minlength=len(source.classes)).tolist()
    few = [name for name, count in zip(source.classes, counts, strict=True) if count <= ipc]
    if few:
        said.append(f"No more real images than synthetic ones in: {', '.join(few[:5])}.")
    said += filter(None, [anchors_caution(prepared, config)])
    if source.left_out:
        said.append(f"{len(source.left_out)} real images could not be used and were left out.")
    if source.leaked:
        said.append(
            f"{source.leaked} of {len(source.test)} test images are training images too: accuracy "
            "is flattered."
        )
    if len(source.test) < 100:
        said.append(f"Accuracy is measured on {len(source.test)} images only.")
    if config.effort == "smoke":
        said.append("Effort smoke: everything was cut short, only to see it run.")
    return said


def anchors_caution(prepared: Prepared, config: Config) -> str | None:
    """Return what a reader should know of the anchors a method chooses, in a sentence."""
    connection = recipe_of(config).connection
    return connection.caution(prepared.pool, config.ipc) if connection else None


def restarts(run: RunFolder) -> list[str]:
    """Return, in sentences, which units of a run were done in safer settings after a divergence."""
    records = run.records()
    counts = {name: len(record["facts"].get("restarts", ())) for name, record in records.items()}
    return [
        f"{name} diverged {number}x and was done at 1/{2**number} of the learning rate, in float32."
        for name, number in counts.items()
        if number
    ]


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
        "left_out": [image.facts() for image in source.left_out],
        "leaked": source.leaked,
    }


def seal(job: Job, prepared: Prepared) -> None:
    """Write the manifest of a finished run."""
    config, source = job.config, prepared.source
    recipe = recipe_of(config)
    job.folder.seal(
        {
            "reta": __version__,
            "method": config.method,
            "summary": recipe.summary,
            "source": recipe.source,
            "recipe": describe(recipe),
            "data": data_facts(source),
            "classes": list(source.classes),
            "folders": class_folders(source.classes),
            "ipc": config.ipc,
            "seed": config.seed,
            "label_epochs": config.label_epochs,
            "label_format": config.label_format,
            "label_keep": config.label_keep,
            "teachers": prepared.teachers,
            "teacher_accuracy": prepared.accuracy,
            "teacher_epochs": prepared.epochs,
            "teacher_knowledge": prepared.pool.knowledge,
            "warnings": cautions(prepared, config) + restarts(job.folder),
            "hardware": hardware(),
            "device": asdict(prepared.device),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
