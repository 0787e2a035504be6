"""Squeeze: every teacher as a unit of work, trained on the data or let in through the gate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reta import gate, models
from reta.checkpoint import Checkpoint, attempt
from reta.config import Config, whole
from reta.data.sources import Source
from reta.errors import UsageError
from reta.models import Classifier, Task
from reta.progress import log
from reta.runtime import Device, Stopwatch, teacher_precision
from reta.space import training_bytes
from reta.storage import RunFolder, Unit
from reta.teachers import TeacherSpec, fingerprint, open_teacher
from reta.team import Team
from reta.training import Progress, Protocol, accuracy, train_teacher


@dataclass(frozen=True)
class Lesson:
    """What the units of teachers share."""

    path: Path
    config: Config
    source: Source
    device: Device


def committee_of(config: Config) -> list[TeacherSpec]:
    """Return the teachers of a configuration.

    Raises:
        UsageError: if two would have the same name.
    """
    specs = [TeacherSpec(text) for text in config.teachers or ()]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise UsageError(f"two teachers are called {max(names, key=names.count)}; rename a file")
    return specs


def task_of(source: Source) -> Task:
    """Return what a network that learns this data is trained to do."""
    return Task(source.classes, source.image_size, *source.mean_std)


def build_for(task: Task, name: str, seed: int) -> Classifier:
    """Return an untrained network for a task."""
    return models.build(
        name, len(task.classes), task.image_size, mean=task.mean, std=task.std, seed=seed
    )


def weights_file(spec: TeacherSpec) -> str:
    """Return where a teacher's weights lie in a run folder."""
    return f"teachers/{spec.name}.safetensors"


def is_weak(accuracy: float, classes: int) -> bool:
    """Return whether a teacher is hardly better than guessing; its labels would be poor."""
    chance = 1 / classes
    return classes > 1 and accuracy < chance + 0.1 * (1 - chance)


def teacher_unit(lesson: Lesson, spec: TeacherSpec) -> None:
    """Train one teacher, or let one in that was trained elsewhere, as a unit of work."""
    if spec.trained_here:
        _train(lesson, spec)
    else:
        _let_in(lesson, spec)


def train_together(lesson: Lesson, team: Team) -> None:
    """Train the teachers of a configuration with all processes of a team.

    Each follows the leader in what is to be done and where it goes on, in a folder of its own.
    """
    for spec in committee_of(lesson.config):
        if not spec.trained_here:
            continue
        unit = _unit(lesson, spec)
        done, kept = team.told((unit.done, unit.kept()))
        if done:
            continue
        if kept is not None and team.rank:
            unit.keep(kept)
        _train(lesson, spec)


def _unit(lesson: Lesson, spec: TeacherSpec) -> Unit:
    """Open the unit of a teacher that is trained here."""
    source, config = lesson.source, lesson.config
    inputs = {
        "architecture": spec.text,
        "data": source.fingerprint,
        "image_size": source.image_size,
        "flip": source.flip,
        "seed": config.seed,
        "protocol": asdict(_protocol(config)),
        "target": config.teacher_accuracy,
    }
    if (share := _share(config)) < 1:
        inputs["share"] = share
    return RunFolder(lesson.path).unit(f"teacher-{spec.name}", inputs)


def _protocol(config: Config) -> Protocol:
    return Protocol(
        math.ceil(config.teacher_epochs or 1),
        smoothing=config.teacher_smoothing,
        ema=config.teacher_ema,
    )


def _share(config: Config) -> float:
    """Return the share of the images that an epoch takes: half an epoch is one of half of them."""
    epochs = config.teacher_epochs or 1
    return epochs / math.ceil(epochs)


def _train(lesson: Lesson, spec: TeacherSpec) -> None:
    source, config, seed = lesson.source, lesson.config, lesson.config.seed
    protocol, target = _protocol(config), config.teacher_accuracy
    unit = _unit(lesson, spec)
    if unit.done:
        return
    watch = Stopwatch()
    task = task_of(source)

    def work(checkpoint: Checkpoint) -> tuple[Classifier, Progress]:
        model = build_for(task, spec.text, seed).to(lesson.device.torch)
        unit.require_space(training_bytes(model, averaged=bool(protocol.ema)))
        progress = train_teacher(
            model,
            source.train,
            source.test,
            protocol,
            flip=source.flip,
            seed=seed,
            target=target,
            share=_share(config),
            checkpoint=checkpoint,
        )
        return model, progress

    (model, progress), failures = attempt(unit, work)
    warnings = []
    if target is not None and progress.held_out[-1][1] < target:
        warnings.append(
            f"Teacher {spec.name} reached {progress.held_out[-1][1]:.0%} of held-out training "
            f"images, not the {target:.0%} asked for."
        )
        log.warning("%s Allow more --teacher-epochs", warnings[-1])
    if is_weak(progress.last, len(source.classes)):
        warnings.append(
            f"Teacher {spec.name} recognises only {progress.last:.0%} of unseen images."
        )
        log.warning(
            "teacher %s recognises %.1f %% of unseen images, chance is %.1f %%: "
            "its labels will be poor; train longer (--teacher-epochs) or check the class folders",
            spec.name,
            100 * progress.last,
            100 / len(source.classes),
        )
    facts = {
        "test_accuracy": progress.last,
        "epochs": whole(progress.curve[-1][0] * _share(config)),
        "held_out": progress.held_out,
        "precision": teacher_precision(lesson.device.torch)[1],
    }
    unit.write(weights_file(spec), models.model_bytes(model, task, **facts))
    unit.finish(
        _about(model, source)
        | facts
        | {"curve": progress.curve, "seconds": watch.seconds, "restarts": failures}
        | {"warnings": warnings}
    )


def _let_in(lesson: Lesson, spec: TeacherSpec) -> None:
    """Measure a teacher that was trained elsewhere; keep a copy, or refuse it."""
    source, floor = lesson.source, lesson.config.teacher_floor
    task = task_of(source)
    inputs = {
        "weights": fingerprint(spec),
        "data": source.fingerprint,
        "image_size": source.image_size,
        "floor": floor,
    }
    unit = RunFolder(lesson.path).unit(f"teacher-{spec.name}", inputs)
    if unit.done:
        return
    watch = Stopwatch()
    model = open_teacher(spec, task).to(lesson.device.torch)
    verdict = gate.judge(model, source.test, (task.mean, task.std))
    caution = gate.require(spec.name, verdict, len(source.classes), floor)
    log.info(
        "teacher %s recognises %.1f %% of %d unseen images, chance is %.1f %%",
        spec.name,
        100 * verdict.accuracy,
        verdict.images,
        100 / len(source.classes),
    )
    if caution:
        log.warning("%s", caution)
    facts = {"test_accuracy": accuracy(model, source.test)[0], "origin": spec.text}
    unit.write(weights_file(spec), models.model_bytes(model, task.under(model), **facts))
    unit.finish(
        _about(model, source)
        | facts
        | {
            "gate": asdict(verdict),
            "seconds": watch.seconds,
            "warnings": [f"{caution[:1].upper()}{caution[1:]}."] if caution else [],
        }
    )


def _about(model: Classifier, source: Source) -> dict[str, Any]:
    return {
        "architecture": model.name,
        "classes": list(source.classes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def read_teacher(lesson: Lesson, spec: TeacherSpec) -> tuple[Classifier, dict[str, Any]]:
    """Return one frozen teacher on the CPU and the record of its unit.

    Raises:
        DataError: if it was not taught these classes, at this size, normalised like this.
    """
    run = RunFolder(lesson.path)
    record = run.finished(f"teacher-{spec.name}")
    model, _ = models.read(run.path / weights_file(spec), task_of(lesson.source))
    return model, record
