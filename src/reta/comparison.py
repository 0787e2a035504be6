"""Several methods side by side: the same teachers, the same pool, the same students."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from reta.config import Config
from reta.errors import UsageError
from reta.executor import Executor, Serial
from reta.methods import METHODS
from reta.pipeline import Job, data_facts, distill_jobs, keep_config
from reta.preparation import Prepared, open_data, prepare, recipe_of
from reta.storage import RunFolder, json_bytes, read_json
from reta.students import Training, mean_std, spread, train_runs


def compare(
    config: Config,
    methods: Sequence[str],
    out: Path | str,
    *,
    seeds: int = 1,
    device: str = "auto",
    command: str = "",
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Distil with several methods, train students on each set and tabulate.

    Args:
        config: the settings all share; its own method is not used. Options of a part (such as
            ``topology.weight``) apply to the methods that have that part.
        methods: names of `METHODS`.
        out: comparison folder; every run lies in a folder of its own inside.
        seeds: distillation seeds per method, counted up from the configuration's.
        device: ``auto``, ``cpu``, ``cuda`` ….
        command: the command line, to be kept with the numbers.
        executor: where the units of work are done; in this process by default.

    Returns:
        The content of ``comparison.json``.
    """
    if not methods or len(set(methods)) < len(methods):
        raise UsageError("name at least one method, and each only once")
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; it must be at least 1")
    configs = [_for_method(config, method) for method in methods]
    if unused := set(config.options) - {name for one in configs for name in one.options}:
        raise UsageError(f"none of these methods has {', '.join(sorted(unused))}")
    for one in configs:
        recipe_of(one)
    executor = executor or Serial()
    place = executor.device(device)
    source = open_data(configs[0])
    folder = RunFolder(out)
    with folder.locked():
        keep_config(folder, replace(config, options={}), source)
        prepared = prepare(config, source, folder, place, executor)
        jobs: dict[str, list[Job]] = {}
        for one in configs:
            own = replace(prepared.config, method=one.method, options=one.options)
            for seed in range(config.seed, config.seed + seeds):
                name = one.method if seeds == 1 else f"{one.method}-{seed}"
                job = Job(folder.path / name, replace(own, seed=seed))
                jobs.setdefault(one.method, []).append(job)
        _do(prepared, [job for own in jobs.values() for job in own], executor)
        executor.check()
        runs = {method: [str(job) for job in own] for method, own in jobs.items()}
        comparison = {
            "title": source.name,
            "command": command,
            "methods": list(methods),
            "runs": runs,
            "data": data_facts(source),
            "teacher_accuracy": prepared.accuracy,
            "rows": [_row(folder, method, runs[method]) for method in methods],
        }
        unit = folder.unit("comparison", comparison)
        if not unit.done:
            unit.write("comparison.json", json_bytes(comparison))
            unit.finish()
        folder.seal({"kind": "comparison", "runs": runs})
    return comparison


def _for_method(config: Config, method: str) -> Config:
    """Return the settings for one method: options of parts it does not have are left out."""
    recipe = METHODS.get(method)
    options = {
        name: value
        for name, value in config.options.items()
        if recipe is None or getattr(recipe, name.split(".")[0], "") is not None
    }
    return replace(config, method=method, options=options)


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


def _row(folder: RunFolder, method: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the table's row of a method, over all its runs and students."""
    runs = [RunFolder(folder.path / name) for name in names]
    metrics = [read_json(run.path / "metrics.json") for run in runs]
    students = [student for metric in metrics for student in metric["students"]]
    connections = [
        connection
        for run in runs
        for name, record in run.records().items()
        if name.startswith("recover-")
        for connection in record["facts"]["connections"]
    ]

    def over(rows: list[dict[str, Any]], key: str) -> float | None:
        return mean_std([row[key] for row in rows])[0] if rows else None

    return {
        "method": method,
        "summary": METHODS[method].summary,
        "n": len(students),
        "protocol": metrics[0]["protocol"]["title"],
        "labels": metrics[0]["protocol"]["labels"],
        **spread(students),
        "kappa_mean": over(metrics, "kappa_mean"),
        "contraction_ratio": over(connections, "contraction_ratio"),
        "distinct_anchors": over(connections, "distinct_anchors"),
        "seconds_per_image": over(metrics, "seconds_per_image"),
        "bytes_images": over(metrics, "bytes_images"),
        "bytes_labels": over(metrics, "bytes_labels"),
    }
