"""Measure a finished run: accuracy, and every evaluation of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from reta.config import Config, describe, from_yaml, resolve, with_options
from reta.data.distilled import load, read_images
from reta.data.images import DecodedImages, ImageSet
from reta.data.sources import Source
from reta.errors import DataError, UsageError, unknown
from reta.evaluation.catalogue import EVALUATIONS
from reta.evaluation.subject import Evaluation, Subject, Trained
from reta.executor import Executor, Serial
from reta.models import Classifier, check, file_stem
from reta.parts import Job
from reta.pipeline import distill_jobs, keep_config
from reta.preparation import Prepared, open_pool, prepare
from reta.runtime import Device, Stopwatch
from reta.storage import RunFolder, fingerprint, json_bytes, read_json, sha256_file
from reta.students import Student, Training, open_run, read_model, reseal, train, train_unit
from reta.synthesis.pool import Pool

ACCURACY = "accuracy"


def choose(
    names: Sequence[str], options: Mapping[str, Any] | None = None
) -> dict[str, Evaluation | None]:
    """Return the evaluations of some names, with their settings.

    Args:
        names: of `EVALUATIONS`, or ``accuracy``, which has no settings of its own (None).
        options: settings such as ``{"corruptions.severities": (1, 3)}``.

    Raises:
        UsageError: if there is no such evaluation or setting, or one is set that is not chosen.
    """
    chosen: dict[str, Evaluation | None] = {}
    for name in names:
        if name not in (ACCURACY, *EVALUATIONS):
            raise unknown("evaluation", name, [ACCURACY, *EVALUATIONS])
        chosen[name] = EVALUATIONS.get(name)
    for path, value in (options or {}).items():
        name, _, setting = path.partition(".")
        evaluation = chosen.get(name)
        if evaluation is None or not setting:
            fits = [one for one in chosen if one != ACCURACY]
            raise UsageError(
                f"{path}: write EVALUATION.SETTING of one that is asked for"
                f"{': ' + ', '.join(fits) if fits else ''}; `reta evaluations` lists them"
            )
        chosen[name] = with_options(evaluation, {setting: value})
    return chosen


def evaluate(
    folder: Path | str,
    evaluations: Sequence[str] = (ACCURACY,),
    *,
    student: str | None = None,
    students: int | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    data: str | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Measure a distilled set; each evaluation writes ``evaluations/<name>.json``.

    What was measured before with the same settings is kept.

    Args:
        folder: a run folder.
        evaluations: ``accuracy`` and names of `EVALUATIONS`.
        student: architecture; the one of the run's settings by default.
        students: how many, with seeds 0, 1, …; that of the run's settings by default.
        options: settings of the evaluations, such as ``{"corruptions.severities": (1, 3)}``.
        device: ``auto``, ``cpu``, ``cuda`` ….
        data: where the real images lie now, if they moved.
        executor: where the work is done; in this process by default.

    Returns:
        The content of each JSON file by name; of accuracy, that of ``metrics.json``.
    """
    chosen = choose(evaluations, options)
    executor = executor or Serial()
    opened = open_run(folder, data=data)
    results: dict[str, Any] = {}
    if ACCURACY in chosen:
        results[ACCURACY] = train(
            folder, student, students, device, opened.source, data, executor=executor
        )
    own = {name: evaluation for name, evaluation in chosen.items() if evaluation is not None}
    if not own:
        return results
    home = home_of(opened.run)
    session = Session(
        Training(opened.config, opened.source, executor.device(device)),
        home.path,
        own,
        student or opened.config.student or "",
        students or opened.config.students or 1,
    )
    with ExitStack() as held:
        if home.path != opened.run.path.resolve():
            held.enter_context(home.locked())
        evaluate_runs([opened.run.path], session, executor)
        if home.path != opened.run.path.resolve():
            reseal(home)
    executor.check()
    for name in own:
        results[name] = read_json(opened.run.path / f"evaluations/{name}.json")
    return results


@dataclass(frozen=True)
class Session:
    """What measurements share.

    Attributes:
        training: settings, real images and device.
        home: the folder of the teachers: a comparison, or the run itself.
        evaluations: by name.
        student: architecture of the students.
        seeds: how many students of each run.
    """

    training: Training
    home: Path
    evaluations: Mapping[str, Evaluation]
    student: str
    seeds: int

    @property
    def device(self) -> Device:
        """Where everything runs."""
        return self.training.device


@dataclass(frozen=True)
class Measurement:
    """One unit of work: an evaluation, and the run it measures."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path.name}, {self.name}"


def evaluate_runs(paths: Sequence[Path], session: Session, executor: Executor) -> None:
    """Measure several runs of one data set, each in its own folder, and seal them again.

    The home folder must be locked by the caller, if it is none of the runs.
    """
    wanted = {session.student}
    for evaluation in session.evaluations.values():
        wanted.update(getattr(evaluation, "students", ()))
    for name in sorted(wanted):
        check(name, session.training.source.image_size)
    students = [
        Student(path, name, seed)
        for path in paths
        for name in sorted(wanted)
        for seed in range(session.seeds)
    ]
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(RunFolder(path).locked())
        broken = {
            one.path for one in executor.run("student", train_unit, session.training, students)
        }
        units = [
            Measurement(path, name)
            for path in paths
            if path not in broken
            for name in session.evaluations
        ]
        executor.run("evaluation", measure_unit, session, units)
        for path in paths:
            reseal(RunFolder(path))


def measure_unit(session: Session, measurement: Measurement) -> None:
    """Measure and write the result; slow parts are units, so a repetition costs little."""
    for folder in {measurement.path, session.home}:
        RunFolder(folder).bring()
    run, name = RunFolder(measurement.path), measurement.name
    evaluation, watch = session.evaluations[name], Stopwatch()
    result = {
        "evaluation": name,
        "settings": describe(evaluation),
        "student": session.student,
        "seeds": list(range(session.seeds)),
        **evaluation.measure(subject_of(run, session)).json(),
    }
    unit = run.unit(f"evaluation-{name}", result)
    if not unit.done:
        unit.write(f"evaluations/{name}.json", json_bytes(result))
        unit.finish({"seconds": watch.seconds})


def home_of(run: RunFolder) -> RunFolder:
    """Return the folder that holds the teachers of a run: its own, or the comparison around it."""
    path = run.path.resolve()
    needed = {f"teacher-{file_stem(name)}" for name in run.manifest()["teachers"]}
    for folder in (RunFolder(path), RunFolder(path.parent)):
        if needed <= set(folder.records()):
            return folder
    return RunFolder(path)


def subject_of(run: RunFolder, session: Session) -> Subject:
    """Return what evaluations measure and measure with."""
    training, home = session.training, RunFolder(session.home)

    def trained(name: str, count: int) -> list[Trained]:
        return [_trained(Student(run.path, name, seed), training) for seed in range(count)]

    def prepared() -> tuple[list[Classifier], Pool]:
        return _teachers(run, home, training)

    @cache
    def distil(labels: tuple[int, ...], method: str | None, seed: int, ipc: int) -> torch.Tensor:
        own = replace(_settings(run, training.source), ipc=ipc)
        name = f"{run.path.name}-ipc{ipc}"
        if method is not None:
            own = replace(own, method=method, seed=seed, options={})
            name = f"reference-{method}-{seed}-ipc{ipc}"
        return _distil_alone(home, training, labels, own, name)

    @cache
    def again(ipc: int) -> torch.Tensor:
        return _distil_again(run, training, *prepared(), ipc)

    return Subject(
        run=run,
        shared=home,
        manifest=run.manifest(),
        source=training.source,
        device=training.device.torch,
        data=load(run.path, temperature=None),
        student=session.student,
        seeds=session.seeds,
        learning_rate=training.config.learning_rate,
        stretch=training.config.stretch,
        train=trained,
        prepare=prepared,
        distil=distil,
        distil_again=again,
    )


def _trained(student: Student, training: Training) -> Trained:
    """Return a student with its weights, training it first if it is not there."""
    train_unit(training, student)
    run = RunFolder(student.path)
    record = run.finished(student.unit)
    ((path, digest),) = record["files"].items()
    model = read_model(run.path / path, training.source, training.device)
    facts = record["facts"]
    return Trained(student.architecture, student.seed, model, facts["last"], facts["best"], digest)


def _teachers(run: RunFolder, home: RunFolder, training: Training) -> tuple[list[Classifier], Pool]:
    """Return the committee and the pool of a run, read back from where they were kept.

    Raises:
        DataError: if a teacher is not the one the set was distilled with.
    """
    committee, teachers = [], run.manifest()["teachers"]
    for name, digest in teachers.items():
        path = home.path / "teachers" / f"{file_stem(name)}.safetensors"
        if not path.is_file() or sha256_file(path) != digest:
            raise DataError(
                f"{path}: not the teacher {run.path} was distilled with; repair: the same "
                "`reta distill` or `reta compare` command again"
            )
        committee.append(read_model(path, training.source, training.device))
    return committee, open_pool(training.source, committee[0], next(iter(teachers.values())), home)


def _settings(run: RunFolder, source: Source) -> Config:
    """Return the settings of a run with nothing open: by its own size, not by another one's."""
    return resolve(from_yaml(run.path / "config.yaml"), *source.shape)


def _distil_again(
    run: RunFolder, training: Training, committee: list[Classifier], pool: Pool, ipc: int
) -> torch.Tensor:
    """Return images ``(classes, ipc, 3, s, s)`` of a run's settings, teachers and pool."""
    source, manifest = training.source, run.manifest()
    config = replace(_settings(run, source), ipc=ipc, label_epochs=1)
    prepared = Prepared(
        config,
        source,
        training.device,
        committee,
        manifest["teachers"],
        manifest["teacher_accuracy"],
        pool,
        epochs=manifest.get("teacher_epochs", {}),
    )
    return _distilled(prepared, Job(run.path / "continual" / f"ipc{ipc}", prepared.config))


def _distilled(prepared: Prepared, job: Job) -> torch.Tensor:
    """Distil into a folder of its own, unless that was done, and return the images.

    The images are all that is wanted: labels of one epoch of views are enough.
    """
    executor = Serial()
    keep_config(job.folder, job.config, prepared.source)
    distill_jobs(prepared, [job], executor)
    executor.check()
    return read_images(job.path, job.folder.manifest()["folders"], job.config.ipc)


def _distil_alone(
    home: RunFolder, training: Training, labels: Sequence[int], config: Config, name: str
) -> torch.Tensor:
    """Return images ``(classes, ipc, 3, s, s)`` distilled from some classes, as if no other were.

    Teachers are trained once for all sets of a comparison, whatever their size.
    """
    source = _only(training.source, labels)
    around = RunFolder(home.path / "continual" / source.fingerprint[:12])
    config, executor = replace(config, label_epochs=1), Serial()
    prepared = prepare(
        replace(config, seed=training.config.seed), source, around, training.device, executor
    )
    return _distilled(prepared, Job(around.path / name, config))


def _only(source: Source, labels: Sequence[int]) -> Source:
    """Return the images of some classes, relabelled in their order."""

    def part(images: ImageSet) -> DecodedImages:
        chosen = torch.isin(images.labels, torch.tensor(labels)).nonzero().flatten()
        position = {label: place for place, label in enumerate(labels)}
        renamed = torch.tensor([position[int(label)] for label in images.labels[chosen]])
        names = tuple(images.classes[label] for label in labels)
        return DecodedImages(images.pixels(chosen).cpu(), renamed, names)

    train, test = part(source.train), part(source.test)
    digest = fingerprint([source.fingerprint, list(labels)])
    return replace(source, train=train, test=test, fingerprint=digest)
