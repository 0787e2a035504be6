"""The verbs of the command line, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reta.config import Config, from_mapping
from reta.mirror import local, mirror_of
from reta.storage import MANIFEST, RunFolder

if TYPE_CHECKING:
    from reta.planning import Plan


def distill(
    data: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    cluster: str | None = None,
    force: bool = False,
    **settings: Any,
) -> Path:
    """Distil images into a few synthetic ones per class, with soft labels.

    Calling it again with the same arguments continues an interrupted run.

    Args:
        data: ``"digits"``, a folder with one sub-folder per class, an .npz or a .parquet file.
        out: run folder; ``runs/DATA-METHOD-ipcN`` by default.
        device: ``auto``, ``cpu``, ``cuda`` ….
        cluster: do the units of work on Ray: ``auto`` or an address, see `reta.cluster`.
        force: begin a new folder, ``OUT-2``, beside one that was begun with other settings.
        settings: fields of `Config`, such as ``method="reta"``, ``ipc=10``, ``effort="small"``.

    Returns:
        The run folder, for `load`, `train`, `evaluate` and `report`.
    """
    from reta.cluster import executor_of
    from reta.pipeline import distill as run

    config = settings_of(data, settings)
    return run(config, out or default_folder(config), device, executor_of(cluster), force)


def plan(
    data: str | Path, out: str | Path | None = None, *, device: str = "auto", **settings: Any
) -> Plan:
    """Return what `distill` with the same arguments would take; nothing is run or written.

    Args:
        data: as in `distill`.
        out: run folder; ``runs/DATA-METHOD-ipcN`` by default.
        device: ``auto``, ``cpu``, ``cuda`` ….
        settings: fields of `Config`.

    Returns:
        Stages with times, bytes, memory, units, and what does not fit.
    """
    from reta.planning import plan as run

    config = settings_of(data, settings)
    return run(config, out or default_folder(config), device)


def compare(
    data: str | Path,
    methods: Sequence[str] = ("random", "fadrm+", "reta"),
    out: str | Path | None = None,
    *,
    seeds: int = 1,
    evaluations: Sequence[str] = ("accuracy",),
    evaluation_options: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    baseline: str | None = None,
    device: str = "auto",
    cluster: str | None = None,
    force: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Distil with several methods, train the same students on each, measure and tabulate.

    Args:
        data: as in `distill`.
        methods: names of `METHODS`.
        out: comparison folder; ``runs/DATA-compare-ipcN`` by default.
        seeds: distillation seeds per method.
        evaluations: what is measured of every set; see `reta.evaluation.catalogue.EVALUATIONS`.
        evaluation_options: such as ``{"corruptions.severities": (1, 3)}``.
        sweep: settings and their values, such as ``{"connection.trade_off": (0, 0.1, 1)}``.
        baseline: the row that others are held against; ``fadrm+`` if it is there, else the first.
        device: ``auto``, ``cpu``, ``cuda`` ….
        cluster: do the units of work on Ray: ``auto`` or an address, see `reta.cluster`.
        force: begin a new folder, ``OUT-2``, beside one that was begun with other settings.
        settings: fields of `Config`.

    Returns:
        The content of ``comparison.json``; its ``rows`` are the table. And the ``folder``.
    """
    from reta.cluster import executor_of
    from reta.comparison import compare as run

    config = settings_of(data, settings)
    folder = out or default_folder(config, "compare")
    executor = executor_of(cluster)
    return run(
        config,
        methods,
        folder,
        seeds=seeds,
        evaluations=evaluations,
        options=evaluation_options,
        sweep=sweep,
        baseline=baseline,
        device=device,
        executor=executor,
        force=force,
    )


def train(folder: str | Path, *, cluster: str | None = None, **options: Any) -> dict[str, Any]:
    """Train students from scratch on a distilled set.

    Args:
        folder: a run folder.
        cluster: address of a Ray cluster; this process by default.
        options: those of `reta.students.train`, and fields of `reta.protocols.Regime`, such as
            ``labels="hard"`` or ``protocol="fadrm"``.
    """
    from reta.cluster import executor_of
    from reta.protocols import Regime
    from reta.students import train as run

    names = {field.name for field in fields(Regime)}
    asked = {name: options.pop(name) for name in names & set(options)}
    return run(folder, executor=executor_of(cluster), regime=Regime(**asked), **options)


def evaluate(
    folder: str | Path,
    evaluations: Sequence[str] = ("accuracy",),
    *,
    cluster: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a distilled set; see `reta.evaluating.evaluate`.

    Returns:
        The results by name; ``["accuracy"]`` is the content of ``metrics.json``.
    """
    from reta.cluster import executor_of
    from reta.evaluating import evaluate as run

    return run(folder, evaluations, executor=executor_of(cluster), **options)


def adopt(weights: str | Path, out: str | Path, **answers: Any) -> None:
    """Turn a state dict into a teacher for ``teachers=[out]``; see `reta.teachers.adopt`."""
    from reta.teachers import adopt as run

    run(weights, out, **answers)


def report(folder: str | Path) -> Path:
    """Write ``report.html`` of a run or comparison folder and return its path."""
    from reta.reporting import write_report

    run = RunFolder(folder)
    run.bring()
    path = write_report(run.path)
    run.send([path.name])
    return path


def verify(folder: str | Path) -> list[str]:
    """Return every way the runs in a folder differ from what was written; empty means intact.

    Every file is compared with its hash; then the images, labels and classes of each distilled set
    with each other.
    """
    mirror = mirror_of(local(folder))
    if mirror:  # what is there counts, not what was copied from it
        with mirror.copied() as path:
            return [problem.replace(str(path), mirror.url) for problem in verify(path)]
    runs = sorted({path.parent for path in Path(folder).rglob(MANIFEST)}) or [Path(folder)]
    return [
        problem if problem.startswith(str(run)) else f"{run}/{problem}"
        for run in runs
        for problem in _problems(RunFolder(run))
    ]


def _problems(run: RunFolder) -> list[str]:
    problems = run.verify()
    if problems or "classes" not in run.manifest():
        return problems
    from reta.data.distilled import inconsistencies

    return inconsistencies(run)


def settings_of(data: str | Path, settings: dict[str, Any]) -> Config:
    """Return a configuration from plain values; a folder's path is made absolute."""
    path = Path(data).expanduser()
    located = str(path.resolve()) if path.exists() else str(data)
    if settings.get("teachers"):
        from reta.teachers import located as located_teachers

        settings = settings | {"teachers": located_teachers(settings["teachers"])}
    return from_mapping({"data": located, **settings}, "settings")


def default_folder(config: Config, word: str | None = None) -> Path:
    """Return where a run goes when no folder is named."""
    return Path("runs") / f"{Path(config.data).stem}-{word or config.method}-ipc{config.ipc}"
