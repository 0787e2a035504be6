"""Students trained on a distilled set, and the figures that say what the set is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reta import models
from reta.checkpoint import Checkpoint, attempt
from reta.config import Config, from_yaml, resolve
from reta.data.distilled import load, run_manifest
from reta.data.sources import Source
from reta.errors import DataError, UsageError
from reta.executor import Executor, Serial
from reta.models import Classifier
from reta.preparation import open_data
from reta.protocols import AS_SET, TITLES, Regime
from reta.reporting import write_card
from reta.runtime import Device, Stopwatch, mixed_precision, precision_asked
from reta.space import training_bytes
from reta.squeeze import build_for, task_of
from reta.storage import RunFolder, fingerprint, json_bytes, read_json
from reta.training import Progress, train_student

_SET = ("images", "labels")


def train(
    folder: Path | str,
    student: str | None = None,
    students: int | None = None,
    device: str = "auto",
    source: Source | None = None,
    data: str | None = None,
    executor: Executor | None = None,
    regime: Regime | None = None,
) -> dict[str, Any]:
    """Train students from scratch on a distilled set and measure them on unseen real images.

    Students that were trained before are kept, so this may be called again for more.

    Args:
        folder: a run folder.
        student: architecture; the one of the run's settings by default.
        students: how many, with seeds 0, 1, …; that of the run's settings by default.
        device: ``auto``, ``cpu``, ``cuda`` ….
        source: the real images, if they are open already.
        data: where the real images lie now, if they moved.
        executor: where the students are trained; in this process by default.
        regime: how they are trained; as the run's settings say by default.

    Returns:
        The content of ``metrics.json``.

    Raises:
        DataError: if the folder is no finished run, or its real images are not the ones it was
            made from.
    """
    opened = open_run(folder, source, data)
    run, config, source = opened.run, opened.config, opened.source
    name, count = (
        student or config.student or "",
        students if students is not None else config.students or 1,
    )
    models.check(name, source.image_size)
    if count < 1:
        raise UsageError(f"students is {count}; it must be at least 1")
    executor = executor or Serial()
    training = Training(config, source, executor.device(device))
    regime = regime or Regime()
    measured = train_runs([run.path], name, count, training, executor, regime)
    executor.check()
    return measured[run.path]


@dataclass(frozen=True)
class Opened:
    """A finished run with the real images it was distilled from.

    Attributes:
        run: the folder.
        manifest: what it says of itself.
        config: its settings, with everything left open chosen.
        source: the real images.
    """

    run: RunFolder
    manifest: dict[str, Any]
    config: Config
    source: Source


def open_run(folder: Path | str, source: Source | None = None, data: str | None = None) -> Opened:
    """Open a finished run and make sure of its real images.

    Args:
        folder: a run folder.
        source: the real images, if they are open already.
        data: where the real images lie now, if they moved.

    Raises:
        DataError: if the folder is no finished run, or its real images are not the ones it was
            made from.
    """
    run = RunFolder(folder)
    manifest = run_manifest(run)
    run.bring({"config.yaml": manifest["files"]["config.yaml"]})
    config = from_yaml(run.path / "config.yaml")
    if data is not None:
        config = replace(config, data=data)
    elif source is None and set(config.data) & set("/\\") and not Path(config.data).exists():
        raise DataError(f"{config.data}: the real images are not there any more; name --data")
    source = source or open_data(config, manifest)
    if source.fingerprint != manifest["data"]["fingerprint"]:
        raise DataError(
            f"{config.data}: not the images {run.path} was distilled from; "
            "they changed since, or another folder took their place"
        )
    return Opened(run, manifest, resolve(config, *source.shape), source)


def reseal(run: RunFolder) -> None:
    """Write the manifest anew, with the files of the units that were added since."""
    manifest = run.manifest()
    run.seal({key: value for key, value in manifest.items() if key not in ("files", "seal")})


def read_model(path: Path, source: Source, device: Device) -> Classifier:
    """Return the teacher or student in a file of a run folder, frozen.

    Raises:
        DataError: if it was trained for other classes, images or normalisation than these.
    """
    return models.read(path, task_of(source))[0].to(device.torch)


def train_runs(
    paths: Sequence[Path],
    name: str,
    count: int,
    training: Training,
    executor: Executor,
    regime: Regime = AS_SET,
) -> dict[Path, dict[str, Any]]:
    """Train the students of several runs of one data set; return the metrics of each.

    A run of which a student was given up has none.
    """
    students = [
        Student(path, name, seed, preset)
        for path in paths
        for preset in regime.presets(training.config)
        for seed in range(count)
    ]
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(RunFolder(path).locked())
        broken = {one.path for one in executor.run("student", train_unit, training, students)}
        return {
            path: _keep_metrics(
                RunFolder(path), [s for s in students if s.path == path], training, regime
            )
            for path in paths
            if path not in broken
        }


def _keep_metrics(
    run: RunFolder, students: Sequence[Student], training: Training, regime: Regime
) -> dict[str, Any]:
    run.bring()
    metrics = collect(run, students, training, regime)
    unit = run.unit("metrics", metrics)
    if not unit.done:
        unit.write("metrics.json", json_bytes(metrics))
        unit.finish()
    reseal(run)
    run.send([write_card(run.path).name])
    return metrics


@dataclass(frozen=True)
class Training:
    """What the units that train a student share."""

    config: Config
    source: Source
    device: Device


@dataclass(frozen=True)
class Student:
    """One unit of work: a student, the run it is trained on, and how."""

    path: Path
    architecture: str
    seed: int
    regime: Regime = AS_SET

    def __str__(self) -> str:
        return f"{self.path.name}, {self.stem.replace('-', ', ')}"

    @property
    def stem(self) -> str:
        """The name of its file: its settings, where they are not the run's, and its seed."""
        parts = (models.file_stem(self.architecture), self.regime.word, str(self.seed))
        return "-".join(part for part in parts if part)

    @property
    def unit(self) -> str:
        """The name of its unit."""
        return f"student-{self.stem}"


def train_unit(training: Training, student: Student) -> None:
    """Train one student as a unit of work."""
    run, source, config = RunFolder(student.path), training.source, training.config
    name, seed = student.architecture, student.seed
    data = load(run.path, temperature=None)
    protocol = student.regime.training(config)
    shown = set_mark(run)
    inputs = {
        "architecture": name,
        "seed": seed,
        "protocol": asdict(protocol),
        "set": shown,
    }
    if precision_asked():
        inputs["precision"] = precision_asked()
    unit = run.unit(student.unit, inputs)
    if unit.done:
        return
    watch = Stopwatch()
    task = task_of(source)

    def work(checkpoint: Checkpoint) -> tuple[Classifier, Progress]:
        model = build_for(task, name, seed).to(training.device.torch)
        unit.require_space(training_bytes(model, averaged=bool(protocol.ema)))
        test = source.test
        return model, train_student(model, data, test, protocol, seed=seed, checkpoint=checkpoint)

    (model, progress), failures = attempt(unit, work)
    weights = models.model_bytes(model, task)
    unit.write(f"students/{student.stem}.safetensors", weights)
    unit.finish(
        {
            "architecture": name,
            "seed": seed,
            "set": shown,
            "protocol": {"name": student.regime.named(config), **asdict(protocol)},
            "last": progress.last,
            "best": progress.best,
            "curve": progress.curve,
            "per_class": progress.per_class,
            "confusion": progress.confusion,
            "seconds": watch.seconds,
            "restarts": failures,
            "precision": mixed_precision(training.device.torch)[1],
        }
    )


def set_mark(run: RunFolder) -> str:
    """Return a fingerprint of the images and labels of a run: what its students learned from."""
    files = run.manifest()["files"]
    return fingerprint({key: digest for key, digest in files.items() if key.startswith(_SET)})


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _summed(matrices: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Return the sum of confusion matrices, each as rows of true class, predicted class, images."""
    total: Counter[tuple[int, int]] = Counter()
    for matrix in matrices:
        total.update({(true, taken): count for true, taken, count in matrix})
    return [[true, taken, count] for (true, taken), count in sorted(total.items())]


def spread(students: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation over students, of the last and of the best epoch."""
    last, last_std = mean_std([facts["last"] for facts in students])
    best, best_std = mean_std([facts["best"] for facts in students])
    return {"last_mean": last, "last_std": last_std, "best_mean": best, "best_std": best_std}


_ROW = ("architecture", "seed", "last", "best", "curve", "per_class", "seconds", "restarts")


def rows(measured: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per architecture and protocol, over the students trained alike.

    Args:
        measured: facts of students.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for facts in measured:
        groups.setdefault(fingerprint([facts["architecture"], facts["protocol"]]), []).append(facts)
    return [
        {
            "architecture": group[0]["architecture"],
            "protocol": {**group[0]["protocol"], "title": TITLES[group[0]["protocol"]["name"]]},
            "n": len(group),
            **spread(group),
            "students": [{key: facts[key] for key in _ROW} for facts in group],
        }
        for group in groups.values()
    ]


def collect(
    run: RunFolder, trained: Sequence[Student], training: Training, regime: Regime
) -> dict[str, Any]:
    """Return the figures of a run: of these students, and of how the set came about.

    Of several presets, the one with the best mean over students of the best epoch counts, as in
    FADRM; the others stay beside it.
    """
    classes, config = training.source.classes, training.config
    student = trained[0].architecture
    measured = [run.finished(one.unit)["facts"] for one in trained]
    presets = rows(measured)
    chosen = max(presets, key=lambda row: row["best_mean"])
    own = {key: value for key, value in chosen["protocol"].items() if key != "title"}
    mark = set_mark(run)
    records = {name: record["facts"] for name, record in run.records().items()}
    recovered = [facts for name, facts in records.items() if name.startswith("recover-")]
    manifest = run.manifest()
    full = manifest.get("teacher_accuracy", {}).get(student)
    sizes = {
        part: sum(path.stat().st_size for path in (run.path / part).rglob("*") if path.is_file())
        for part in _SET
    }
    every = [
        facts
        for name, facts in records.items()
        if name.startswith("student-") and facts.get("set") == mark
    ]
    return {
        "student": student,
        "asked": {key: value for key, value in asdict(regime).items() if value is not None},
        "protocol": chosen["protocol"],
        "accuracy": spread(chosen["students"]),
        "students": chosen["students"],
        "presets": presets if len(presets) > 1 else [],
        "accuracies": rows(every),
        "confusion": _summed(facts["confusion"] for facts in measured if facts["protocol"] == own),
        "kappa_mean": read_json(run.path / "geometry.json")["kappa_mean"],
        "seconds_per_image": sum(facts["seconds"] for facts in recovered)
        / (config.ipc * len(classes)),
        "peak_memory": max(facts["peak_memory"] for facts in recovered),
        "bytes_images": sizes["images"],
        "bytes_labels": sizes["labels"],
        "label_epochs": config.label_epochs,
        "chance": 1 / len(classes),
        "full_data": full
        and {
            "test_accuracy": full,
            "architecture": student,
            "epochs": manifest.get("teacher_epochs", {}).get(student),
        },
    }


def evaluate(
    folder: Path | str,
    device: str = "auto",
    data: str | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Return the figures of a distilled set, training its students first if there are none.

    Args:
        folder: a run folder.
        device: ``auto``, ``cpu``, ``cuda`` ….
        data: where the real images lie now, if they moved.
        executor: where the students are trained; in this process by default.

    Returns:
        The content of ``metrics.json``: accuracy of the students on unseen real images, κ, cost
        and sizes.
    """
    run = RunFolder(folder)
    student = count = None
    regime = AS_SET
    if "metrics.json" in run_manifest(run)["files"]:
        # The students measured last; those of another set or protocol are trained anew.
        earlier = read_json(run.path / "metrics.json")
        student, count = earlier["student"], len(earlier["students"])
        regime = Regime(**earlier.get("asked", {}))
    return train(folder, student, count, device, data=data, executor=executor, regime=regime)
