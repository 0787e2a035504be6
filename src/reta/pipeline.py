"""From prepared data to a distilled set: recover, relabel, measure, seal.

The work is cut into units that are kept in the run folder, so each function here can be called
again after an interruption and continues. `Config` ends here: nothing below receives it whole.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from reta import __version__
from reta.checkpoint import Checkpoint, attempt
from reta.config import Config, describe, from_yaml, resolve, to_yaml
from reta.data.distilled import image_name, read_images, teacher_name
from reta.data.formats import Top, label_format
from reta.data.sources import Source
from reta.errors import UsageError
from reta.evaluation.geometry import measure
from reta.executor import Executor, Serial
from reta.files import require_space
from reta.mirror import local
from reta.models import model_bytes
from reta.preparation import Prepared, open_data, prepare, recipe_of
from reta.progress import log, show_progress
from reta.reporting import write_card
from reta.runtime import Stopwatch, choose_device, hardware, peak_memory, precision_asked
from reta.space import block_bytes, shard_bytes
from reta.squeeze import Lesson, task_of, train_together
from reta.storage import RunFolder, Unit, json_bytes
from reta.synthesis.engine import Recovered, Settings, Tensors, Work
from reta.synthesis.history import history_sheet
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from reta.synthesis.relabel import relabel
from reta.team import assembled
from reta.tensors import png_bytes, png_files, read_tensors, tensor_bytes

EPOCHS_PER_SHARD = 50
_SHARD = 2**30  # logits in a shard of labels, at most: a gigabyte at 8 bits each
# Settings that say where the images lie (their fingerprint is compared), how students are trained,
# or how much fits in memory; not what the set is.
_STUDENTS = ("student", "students", "protocol", "labels", "learning_rate", "stretch")
_FREE = ("data", *_STUDENTS, "images_per_pass", "workers", "root", "download")


@dataclass(frozen=True)
class Job:
    """A method with its settings, and the folder its distilled set goes to."""

    path: Path
    config: Config

    def __str__(self) -> str:
        return self.path.name

    @property
    def folder(self) -> RunFolder:
        """The run folder; every unit opens it anew, wherever it is done."""
        return RunFolder(self.path)


@dataclass(frozen=True)
class Part:
    """One unit of work of a job: some classes, or some epochs of labels.

    Attributes:
        job: what it belongs to.
        index: which of the parts it is.
        span: the classes or epochs.
    """

    job: Job
    index: int
    span: range

    def __str__(self) -> str:
        return f"{self.job}, {self.span.start} to {self.span.stop - 1}"


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
        full = resolve(config, source.image_size)
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
    """
    run = RunFolder(out)
    numbers = count(2)

    def refused() -> bool:
        nested = ((RunFolder(run.path / name), own) for name, own in (inside or {}).items())
        return any(refusal(*one, source) is not None for one in [(run, config), *nested])

    while force and refused():
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
        if not folder.record_path(_block_name(part.index)).exists()
    ) + sum(
        shard_bytes(len(part.span), classes * config.ipc, form, classes)
        for part in shards
        if not folder.record_path(_shard_name(part.index)).exists()
    )


def balanced(count: int, most: int) -> list[range]:
    """Return consecutive blocks of at most ``most``, as equal as can be.

    A class block is also a BN group, so 101 become 51 and 50 and not 100 and a lonely one.
    """
    blocks = -(-count // most)
    bounds = [index * count // blocks for index in range(blocks + 1)]
    return [range(begin, end) for begin, end in pairwise(bounds)]


def class_blocks(job: Job, source: Source) -> list[Part]:
    """Return the blocks of classes that are optimised together."""
    engine = recipe_of(job.config).engine
    together = engine is not None and engine.together
    most = len(source.classes) if together else job.config.block
    return _parts(job, balanced(len(source.classes), most))


def groundwork(job: Job, source: Source) -> list[Part]:
    """Return the parts of what an engine does once before the first block; for most methods none.

    Each is about all classes.
    """
    engine = recipe_of(job.config).engine
    count = engine.groundwork if engine else 0
    return [Part(job, index, range(len(source.classes))) for index in range(count)]


def label_shards(job: Job, source: Source) -> list[Part]:
    """Return the shards of epochs that labels are written in: 50, or as many as make a gigabyte.

    Views are drawn alike for every epoch, so keeping some epochs at random (LPLD's pruning) is to
    make the first ones only; students go round them.
    """
    epochs = range(max(1, round((job.config.label_epochs or 1) * job.config.label_keep)))
    per_epoch = len(source.classes) ** 2 * job.config.ipc
    step = max(1, min(EPOCHS_PER_SHARD, _SHARD // per_epoch))
    return _parts(job, [epochs[start : start + step] for start in epochs[::step]])


def _parts(job: Job, spans: Sequence[range]) -> list[Part]:
    return [Part(job, index, span) for index, span in enumerate(spans)]


def whole_set(job: Job, source: Source) -> list[Part]:
    """Return one part: all classes."""
    return [Part(job, 0, range(len(source.classes)))]


def _inputs(prepared: Prepared, part: Part) -> dict[str, Any]:
    """Return everything that the images of some classes depend on."""
    config, source = part.job.config, prepared.source
    recipe = recipe_of(config)
    given = recipe.engine.given() if recipe.engine else {}
    return {
        "recipe": describe(recipe),
        **({"given": dict(given)} if given else {}),
        "ipc": config.ipc,
        "seed": config.seed,
        "flip": source.flip,
        "data": source.fingerprint,
        "teachers": prepared.teachers,
        "labels": list(part.span),
    }


def _settings(prepared: Prepared, config: Config) -> Settings:
    return Settings(config.ipc, config.seed, prepared.source.flip, config.images_per_pass)


def lay_groundwork(prepared: Prepared, part: Part) -> None:
    """Do a part of an engine's groundwork as a unit of work: MTT's experts, say."""
    config, pool = part.job.config, prepared.pool
    recipe = recipe_of(config)
    unit = part.job.folder.unit(_ground_name(part.index), _inputs(prepared, part))
    if unit.done or recipe.engine is None:
        return
    engine, watch, settings = recipe.engine, Stopwatch(), _settings(prepared, config)
    work = Work(prepared.committee, pool, part.span, settings, recipe.start)
    tensors, failures = attempt(
        unit,
        lambda checkpoint: engine.lay(part.index, replace(work, checkpoint=checkpoint)),
    )
    unit.write(_ground_file(part.index), tensor_bytes(tensors, asdict(task_of(prepared.source))))
    unit.finish({"seconds": watch.seconds, "restarts": failures})


def _laid(prepared: Prepared, job: Job) -> list[Tensors]:
    """Return the groundwork of a job."""
    task = task_of(prepared.source)
    found: list[Tensors] = []
    for part in groundwork(job, prepared.source):
        job.folder.finished(_ground_name(part.index))
        path = job.path / _ground_file(part.index)
        tensors, facts = read_tensors(path)
        task.check(str(path), facts)
        found.append(tensors)
    return found


def recover_block(prepared: Prepared, part: Part) -> None:
    """Recover one class block as a unit of work."""
    config, source, labels = part.job.config, prepared.source, part.span
    recipe, settings = recipe_of(config), _settings(prepared, config)
    unit = part.job.folder.unit(_block_name(part.index), _inputs(prepared, part))
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


def _block_name(index: int) -> str:
    return f"recover-{index:03d}"


def _ground_name(index: int) -> str:
    return f"groundwork-{index:03d}"


def _ground_file(index: int) -> str:
    return f"groundwork/{index:03d}.safetensors"


def _shard_name(index: int) -> str:
    return f"labels-{index:03d}"


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
    records = [run.finished(_block_name(part.index)) for part in class_blocks(job, prepared.source)]
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
    unit = part.job.folder.unit(_shard_name(part.index), inputs)
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


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return a folder name for each class, safe on any system, that sorts in class order."""
    safe = [re.sub(r"[^\w.+-]+", "_", name).strip(".") or "class" for name in classes]
    if safe == list(classes) and safe == sorted(safe) and len(set(safe)) == len(safe):
        return safe
    width = len(str(len(classes) - 1))
    return [f"{index:0{width}d}_{name}"[:100] for index, name in enumerate(safe)]


def cautions(prepared: Prepared, config: Config) -> list[str]:
    """Return what a reader of the results should know, in sentences."""
    source, ipc = prepared.source, config.ipc
    said = list(prepared.warnings)
    counts = source.train.labels.bincount(minlength=len(source.classes)).tolist()
    few = [name for name, count in zip(source.classes, counts, strict=True) if count <= ipc]
    if few:
        said.append(f"No more real images than synthetic ones in: {', '.join(few[:5])}.")
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
            "warnings": cautions(prepared, config) + restarts(job.folder),
            "hardware": hardware(),
            "device": asdict(prepared.device),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
