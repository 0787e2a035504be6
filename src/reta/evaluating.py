"""Measure a finished run: accuracy, and every evaluation of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from reta.config import describe, with_options
from reta.data.distilled import load
from reta.data.sources import Source
from reta.errors import DataError, UsageError, unknown
from reta.evaluation.catalogue import EVALUATIONS
from reta.evaluation.subject import Evaluation, Student, Subject
from reta.models import Classifier, file_stem
from reta.preparation import open_pool
from reta.progress import log
from reta.runtime import Device, choose_device
from reta.storage import RunFolder, json_bytes, sha256_file
from reta.students import Opened, open_run, read_model, reseal, train, train_units
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
    source: Source | None = None,
    shared: RunFolder | None = None,
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
        source: the real images, if they are open already.
        shared: the comparison folder a run belongs to, locked by the caller.

    Returns:
        The content of each JSON file by name; of accuracy, that of ``metrics.json``.
    """
    chosen = choose(evaluations, options)
    opened = open_run(folder, source, data)
    results: dict[str, Any] = {}
    if ACCURACY in chosen:
        results[ACCURACY] = train(folder, student, students, device, opened.source, data)
    left = {name: evaluation for name, evaluation in chosen.items() if evaluation is not None}
    if not left:
        return results
    home = shared or home_of(opened)
    place = choose_device(device)
    with ExitStack() as held:
        if shared is None and home.path != opened.run.path:
            held.enter_context(home.locked())
        held.enter_context(opened.run.locked())
        subject = subject_of(opened, home, place, student, students)
        for name, evaluation in left.items():
            log.info("%s: %s", opened.run.path.name, name)
            results[name] = _measure(name, evaluation, subject)
        reseal(opened.run)
        if shared is None and home.path != opened.run.path:
            reseal(home)
    return results


def _measure(name: str, evaluation: Evaluation, subject: Subject) -> dict[str, Any]:
    """Measure and write the result; slow parts are units, so a repetition costs little."""
    result = {
        "evaluation": name,
        "settings": describe(evaluation),
        "student": subject.student,
        "seeds": list(range(subject.seeds)),
        **evaluation.measure(subject).json(),
    }
    unit = subject.run.unit(f"evaluation-{name}", result)
    if not unit.done:
        unit.write(f"evaluations/{name}.json", json_bytes(result))
        unit.finish()
    written: dict[str, Any] = json.loads(json_bytes(result))  # tuples are lists in the file
    return written


def home_of(opened: Opened) -> RunFolder:
    """Return the folder that holds the teachers of a run: its own, or the comparison around it."""
    around = RunFolder(opened.run.path.resolve().parent)
    for folder in (opened.run, around):
        names = {name for name in folder.records() if name.startswith("teacher-")}
        if names >= {f"teacher-{file_stem(name)}" for name in opened.manifest["teachers"]}:
            return folder
    return opened.run


def subject_of(
    opened: Opened,
    home: RunFolder,
    place: Device,
    student: str | None = None,
    students: int | None = None,
) -> Subject:
    """Return what evaluations measure and measure with."""
    config, size = opened.config, opened.source.image_size
    data = load(opened.run.path, temperature=None)

    def trained(name: str, count: int) -> list[Student]:
        units = train_units(opened, name, count, data, place)
        return [
            Student(
                name,
                seed,
                read_model(opened.run.path / next(iter(unit.files)), size, place),
                unit.facts["last"],
                unit.facts["best"],
                next(iter(unit.files.values())),
            )
            for seed, unit in enumerate(units)
        ]

    def prepared() -> tuple[list[Classifier], Pool]:
        return _teachers(opened, home, place)

    def distil(labels: Sequence[int], out: Path) -> torch.Tensor:
        raise NotImplementedError

    return Subject(
        run=opened.run,
        shared=home,
        manifest=opened.manifest,
        source=opened.source,
        device=place.torch,
        data=data,
        student=student or config.student or "",
        seeds=students or config.students or 1,
        learning_rate=config.learning_rate,
        stretch=config.stretch,
        train=trained,
        prepare=prepared,
        distil=distil,
    )


def _teachers(opened: Opened, home: RunFolder, place: Device) -> tuple[list[Classifier], Pool]:
    """Return the committee and the pool of a run, read back from where they were kept.

    Raises:
        DataError: if a teacher is not the one the set was distilled with.
    """
    committee = []
    for name, digest in opened.manifest["teachers"].items():
        path = home.path / "teachers" / f"{file_stem(name)}.safetensors"
        if not path.is_file() or sha256_file(path) != digest:
            raise DataError(
                f"{path}: not the teacher {opened.run.path} was distilled with; repair: the same "
                "`reta distill` or `reta compare` command again"
            )
        committee.append(read_model(path, opened.source.image_size, place))
    teachers = opened.manifest["teachers"]
    return committee, open_pool(opened.source, committee[0], teachers, home)
