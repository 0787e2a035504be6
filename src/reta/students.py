"""Students trained on a distilled set, and the figures that say what the set is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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
from reta.reporting import write_card
from reta.runtime import Device, Stopwatch
from reta.squeeze import build_for, task_of
from reta.storage import RunFolder, json_bytes, read_json
from reta.training import Progress, Protocol, train_student

_SET = ("images", "labels")


def train(
    folder: Path | str,
    student: str | None = None,
    students: int | None = None,
    device: str = "auto",
    source: Source | None = None,
    data: str | None = None,
    executor: Executor | None = None,
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
    measured = train_runs([run.path], name, count, training, executor)
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
    source = source or open_data(config)
    if source.fingerprint != manifest["data"]["fingerprint"]:
        raise DataError(
            f"{config.data}: not the images {run.path} was distilled from; "
            "they changed since, or another folder took their place"
        )
    return Opened(run, manifest, resolve(config, source.image_size), source)


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
    paths: Sequence[Path], name: str, count: int, training: Training, executor: Executor
) -> dict[Path, dict[str, Any]]:
    """Train the students of several runs of one data set; return the metrics of each.

    A run of which a student was given up has none.
    """
    students = [Student(path, name, seed) for path in paths for seed in range(count)]
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(RunFolder(path).locked())
        broken = {one.path for one in executor.run("student", train_unit, training, students)}
        return {
            path: _keep_metrics(RunFolder(path), [s for s in students if s.path == path], training)
            for path in paths
            if path not in broken
        }


def _keep_metrics(
    run: RunFolder, students: Sequence[Student], training: Training
) -> dict[str, Any]:
    run.bring()
    metrics = collect(run, students, training)
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
    """One unit of work: a student, and the run it is trained on."""

    path: Path
    architecture: str
    seed: int

    def __str__(self) -> str:
        return f"{self.path.name}, {self.architecture}, seed {self.seed}"

    @property
    def unit(self) -> str:
        """The name of its unit."""
        return f"student-{models.file_stem(self.architecture)}-{self.seed}"


def train_unit(training: Training, student: Student) -> None:
    """Train one student as a unit of work."""
    run, source, config = RunFolder(student.path), training.source, training.config
    name, seed = student.architecture, student.seed
    data = load(run.path, temperature=None)
    protocol = Protocol(data.epochs, config.learning_rate, stretch=config.stretch)
    files = run.manifest()["files"]
    inputs = {
        "architecture": name,
        "seed": seed,
        "protocol": asdict(protocol),
        "set": {key: digest for key, digest in files.items() if key.startswith(_SET)},
    }
    unit = run.unit(student.unit, inputs)
    if unit.done:
        return
    watch = Stopwatch()
    task = task_of(source)

    def work(checkpoint: Checkpoint) -> tuple[Classifier, Progress]:
        model = build_for(task, name, seed).to(training.device.torch)
        test = source.test
        return model, train_student(model, data, test, protocol, seed=seed, checkpoint=checkpoint)

    (model, progress), failures = attempt(unit, work)
    weights = models.model_bytes(model, task)
    unit.write(f"students/{models.file_stem(name)}-{seed}.safetensors", weights)
    unit.finish(
        {
            "architecture": name,
            "seed": seed,
            "last": progress.last,
            "best": progress.best,
            "curve": progress.curve,
            "per_class": progress.per_class,
            "confusion": progress.confusion,
            "seconds": watch.seconds,
            "restarts": failures,
        }
    )


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _summed(matrices: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Return the sum of confusion matrices, each as rows of true class, predicted class, images."""
    total: Counter[tuple[int, int]] = Counter()
    for matrix in matrices:
        total.update({(true, taken): count for true, taken, count in matrix})
    return [[true, taken, count] for (true, taken), count in sorted(total.items())]


def collect(run: RunFolder, trained: Sequence[Student], training: Training) -> dict[str, Any]:
    """Return the figures of a run: of these students, and of how the set came about."""
    classes, config = training.source.classes, training.config
    student = trained[0].architecture
    measured = [run.finished(one.unit)["facts"] for one in trained]
    students = [
        {key: value for key, value in facts.items() if key != "confusion"} for facts in measured
    ]
    last, last_std = mean_std([facts["last"] for facts in students])
    best, best_std = mean_std([facts["best"] for facts in students])
    records = {name: record["facts"] for name, record in run.records().items()}
    recovered = [facts for name, facts in records.items() if name.startswith("recover-")]
    full = run.manifest().get("teacher_accuracy", {}).get(student)
    sizes = {
        part: sum(path.stat().st_size for path in (run.path / part).rglob("*") if path.is_file())
        for part in _SET
    }
    return {
        "student": student,
        "accuracy": {
            "last_mean": last,
            "last_std": last_std,
            "best_mean": best,
            "best_std": best_std,
        },
        "students": students,
        "confusion": _summed(facts["confusion"] for facts in measured),
        "kappa_mean": read_json(run.path / "geometry.json")["kappa_mean"],
        "seconds_per_image": sum(facts["seconds"] for facts in recovered)
        / (config.ipc * len(classes)),
        "peak_memory": max(facts["peak_memory"] for facts in recovered),
        "bytes_images": sizes["images"],
        "bytes_labels": sizes["labels"],
        "label_epochs": config.label_epochs,
        "chance": 1 / len(classes),
        "full_data": full and {"test_accuracy": full, "architecture": student},
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
    if "metrics.json" in run_manifest(run)["files"]:
        # The students measured last; those of another set or protocol are trained anew.
        earlier = read_json(run.path / "metrics.json")
        student, count = earlier["student"], len(earlier["students"])
    return train(folder, student, count, device, data=data, executor=executor)
