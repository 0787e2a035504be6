"""Several methods side by side: the same teachers, the same pool, the same students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from reta.config import Config, resolve
from reta.data.sources import Source
from reta.errors import UsageError, unknown
from reta.evaluating import ACCURACY, Session, choose, evaluate_runs
from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Evaluation
from reta.evaluation.uncertainty import paired_difference, spread
from reta.executor import Executor, Serial
from reta.methods import METHODS
from reta.parts import Job
from reta.pipeline import data_facts, distill_jobs, keep_config, run_folder
from reta.preparation import Prepared, open_data, prepare
from reta.reporting.published import published
from reta.reporting.tables import tables
from reta.storage import RunFolder, json_bytes, read_json
from reta.students import Training, mean_std, train_runs
from reta.variants import Variant, swept, variant_of


def compare(
    config: Config,
    methods: Sequence[str],
    out: Path | str,
    *,
    seeds: int = 1,
    evaluations: Sequence[str] = (ACCURACY,),
    options: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    baseline: str | None = None,
    device: str = "auto",
    command: str = "",
    executor: Executor | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Distil with several methods, train students on each set, measure and tabulate.

    Args:
        config: the settings all share; its own method is not used. Options of a part (such as
            ``topology.weight``) apply to the methods that have that part.
        methods: names of `METHODS`, each with settings of its own if wanted, such as
            ``"reta connection.anchors=distinct topology.weight=1"``.
        out: comparison folder; every run lies in a folder of its own inside.
        seeds: distillation seeds per method, counted up from the configuration's.
        evaluations: what is measured of every run besides accuracy; see `EVALUATIONS`.
        options: settings of the evaluations.
        sweep: settings and their values, such as ``{"connection.trade_off": (0, 0.1, 1)}``: each
            is varied by itself, for every method that has it.
        baseline: the row others are held against; FADRM+ if it is there, else the first method.
        device: ``auto``, ``cpu``, ``cuda`` ….
        command: the command line, to be kept with the numbers.
        executor: where the units of work are done; in this process by default.
        force: begin a new folder beside one that was begun with other settings; nothing is mixed.

    Returns:
        The content of ``comparison.json``, and the ``folder``.
    """
    if not methods or len(set(methods)) < len(methods):
        raise UsageError("name at least one method, and each only once")
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; it must be at least 1")
    given = [variant_of(config, words) for words in methods]
    if unused := set(config.options) - {name for one in given for name in one.config.options}:
        raise UsageError(f"none of these methods has {', '.join(sorted(unused))}")
    variants, sweeps = swept(given, sweep or {})
    baseline = baseline or next((name for name in methods if name == "fadrm+"), methods[0])
    if baseline not in {variant.label for variant in variants}:
        raise unknown("baseline", baseline, [variant.label for variant in variants])
    chosen = choose(evaluations, options)
    executor = executor or Serial()
    place = executor.device(device)
    source = open_data(config)
    folder = _folder(out, config, variants, seeds, source, force)
    with folder.locked():
        keep_config(folder, replace(config, options={}), source)
        prepared = prepare(config, source, folder, place, executor)
        jobs: dict[str, list[Job]] = {}
        for variant in variants:
            one = variant.config
            own = replace(prepared.config, method=one.method, options=one.options)
            for seed in range(config.seed, config.seed + seeds):
                path = folder.path / variant.run(seed, seeds)
                jobs.setdefault(variant.label, []).append(Job(path, replace(own, seed=seed)))
        _do(prepared, [job for own in jobs.values() for job in own], executor)
        executor.check()
        _measure(prepared, folder, chosen, jobs, executor)
        executor.check()
        runs = {label: [str(job) for job in own] for label, own in jobs.items()}
        measured = {
            name: summary(_results(folder, name, runs), baseline) for name in (ACCURACY, *chosen)
        }
        comparison = {
            "title": source.name,
            "command": command,
            "methods": list(runs),
            "baseline": baseline,
            "seeds": seeds,
            "classes": len(source.classes),
            "ipc": prepared.config.ipc,
            "student": prepared.config.student,
            "students": prepared.config.students,
            "runs": runs,
            "data": data_facts(source),
            "teacher_accuracy": prepared.accuracy,
            "teacher_epochs": dict(prepared.epochs),
            "rows": [_row(folder, variant, runs[variant.label], measured) for variant in variants],
            "evaluations": measured,
            "sweeps": [one.json() for one in sweeps],
        }
        comparison["published"] = _published(comparison)
        unit = folder.unit("comparison", comparison)
        if not unit.done:
            unit.write("comparison.json", json_bytes(comparison))
            for name, text in tables(comparison).items():
                unit.write(f"tables/{name}", text.encode())
            unit.finish()
        folder.seal({"kind": "comparison", "runs": runs, "teachers": prepared.teachers})
    return comparison | {"folder": str(folder.path)}


def _folder(
    out: Path | str,
    config: Config,
    variants: Sequence[Variant],
    seeds: int,
    source: Source,
    force: bool,
) -> RunFolder:
    """Return the folder of a comparison; with force, one that holds no run of other settings."""
    full = resolve(config, *source.shape)
    inside = {
        variant.run(seed, seeds): replace(
            full, method=variant.config.method, options=variant.config.options, seed=seed
        )
        for variant in variants
        for seed in range(config.seed, config.seed + seeds)
    }
    return run_folder(out, replace(config, options={}), source, force, inside)


def _measure(
    prepared: Prepared,
    folder: RunFolder,
    chosen: Mapping[str, Evaluation | None],
    jobs: Mapping[str, Sequence[Job]],
    executor: Executor,
) -> None:
    """Measure every run."""
    config = prepared.config
    own = {name: one for name, one in chosen.items() if one is not None}
    session = Session(
        Training(config, prepared.source, prepared.device),
        folder.path,
        own,
        config.student or "",
        config.students or 1,
    )
    if own:
        paths = [job.path for every in jobs.values() for job in every]
        evaluate_runs(paths, session, executor)


Results = dict[str, list[dict[str, Any]]]
"""The results of one evaluation, by row, one per distillation seed."""


def _results(folder: RunFolder, name: str, runs: Mapping[str, Sequence[str]]) -> Results:
    if name == ACCURACY:
        return {
            label: [_accuracy(read_json(folder.path / run / "metrics.json")) for run in own]
            for label, own in runs.items()
        }
    return {
        label: [read_json(folder.path / run / f"evaluations/{name}.json") for run in own]
        for label, own in runs.items()
    }


def _accuracy(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics.json in the shape of the other evaluations."""
    students = metrics["students"]
    figures = {
        "last": Figure("accuracy, last epoch", [one["last"] for one in students]),
        "best": Figure("accuracy, best epoch", [one["best"] for one in students]),
        "kappa": Figure("κ", [metrics["kappa_mean"]], "number", "lower"),
        "seconds_per_image": Figure(
            "seconds per image", [metrics["seconds_per_image"]], "seconds", "lower"
        ),
    }
    notes = ["Best epoch is chosen on the test images: read it beside the last."]
    return Result(figures, {}, notes).json()


def summary(results: Results, baseline: str) -> dict[str, Any]:
    """Return the figures of an evaluation over all rows, with spread and differences.

    Args:
        results: by row, one result per distillation seed.
        baseline: the row others are held against.
    """
    figures: dict[str, Any] = {}
    for label, own in results.items():
        for name in own[0]["order"]:
            figure = own[0]["figures"][name]
            values = [result["figures"][name]["values"] for result in own]
            said = {key: figure.get(key) for key in ("title", "unit", "better", "curve")}
            entry = figures.setdefault(name, said | {"rows": {}})
            entry["rows"][label] = {"values": values, **asdict(spread(values))}
    for entry in figures.values():
        against = entry["rows"].get(baseline)
        for label, row in entry["rows"].items():
            found = (
                paired_difference(row["values"], against["values"])
                if against and label != baseline
                else None
            )
            row["difference"] = found and asdict(found)
    return {"figures": figures, "order": list(figures), "notes": _notes(results)}


def _notes(results: Results) -> list[str]:
    """Return what is said of all sets of a row, with the row where it is not said of all.

    What is said of single sets, such as a share, stands in their own reports.
    """
    said = {
        label: [note for note in own[0]["notes"] if all(note in one["notes"] for one in own)]
        for label, own in results.items()
    }
    notes = []
    for note in dict.fromkeys(note for own in said.values() for note in own):
        labels = [label for label, own in said.items() if note in own]
        notes.append(note if len(labels) == len(said) else f"{', '.join(labels)}: {note}")
    return notes


def _published(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return published numbers for the same setting, by measure and row."""
    data = comparison["data"]
    setting = {
        "data": data["name"],
        "classes": comparison["classes"],
        "image_size": data["image_size"],
        "ipc": comparison["ipc"],
        "student": comparison["student"],
    }
    found: dict[str, Any] = {}
    for measure in ("accuracy", "corrupted"):
        for label in comparison["methods"]:
            if number := published(label, measure, **setting):
                found.setdefault(measure, {})[label] = number
    return found


def _do(prepared: Prepared, jobs: Sequence[Job], executor: Executor) -> None:
    """Distil every job, then train the students of those that are whole."""
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(job.folder.locked())
            keep_config(job.folder, job.config, prepared.source)
        whole = distill_jobs(prepared, jobs, executor)
    config = prepared.config
    training = Training(config, prepared.source, prepared.device)
    paths = [job.path for job in whole]
    train_runs(paths, config.student or "", config.students or 1, training, executor)


def _row(
    folder: RunFolder, variant: Variant, names: Sequence[str], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the table's row of a method, over all its runs and students.

    ``last_std`` is over distillation seeds where there are several, else over students; both are
    given by name.
    """
    runs = [RunFolder(folder.path / name) for name in names]
    metrics = [read_json(run.path / "metrics.json") for run in runs]
    connections = [
        connection
        for run in runs
        for name, record in run.records().items()
        if name.startswith("recover-")
        for connection in record["facts"]["connections"]
    ]

    def over(rows: list[dict[str, Any]], key: str) -> float | None:
        return mean_std([row[key] for row in rows])[0] if rows else None

    row: dict[str, Any] = {
        "method": variant.label,
        "summary": METHODS[variant.config.method].summary,
        "options": dict(variant.config.options),
        "protocol": metrics[0]["protocol"]["title"],
        "labels": metrics[0]["protocol"]["labels"],
        "n": sum(len(metric["students"]) for metric in metrics),
    }
    for which in ("last", "best"):
        figure = measured[ACCURACY]["figures"][which]["rows"][variant.label]
        row |= {
            f"{which}_mean": figure["mean"],
            f"{which}_std": figure["std_seeds" if len(runs) > 1 else "std_students"],
            f"{which}_std_seeds": figure["std_seeds"],
            f"{which}_std_students": figure["std_students"],
            f"{which}_difference": figure["difference"],
        }
    return row | {
        "kappa_mean": over(metrics, "kappa_mean"),
        "contraction_ratio": over(connections, "contraction_ratio"),
        "distinct_anchors": over(connections, "distinct_anchors"),
        "seconds_per_image": over(metrics, "seconds_per_image"),
        "bytes_images": over(metrics, "bytes_images"),
        "bytes_labels": over(metrics, "bytes_labels"),
    }
