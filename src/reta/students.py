"""Students trained on a distilled set, and the figures that say what the set is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reta.config import Config, from_yaml, resolve
from reta.data.distilled import DistilledSet, load, run_manifest
from reta.data.sources import Source
from reta.errors import DataError, UsageError
from reta.models import build, check, file_stem
from reta.preparation import open_data
from reta.runtime import Device, Stopwatch, choose_device
from reta.storage import RunFolder, Unit, json_bytes, read_json
from reta.tensors import tensor_bytes
from reta.training import Protocol, train_student

_SET = ("images", "labels")


def train(
    folder: Path | str,
    student: str | None = None,
    students: int | None = None,
    device: str = "auto",
    source: Source | None = None,
    data: str | None = None,
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

    Returns:
        The content of ``metrics.json``.

    Raises:
        DataError: if the folder is no finished run, or its real images are not the ones it was
            made from.
    """
    run = RunFolder(folder)
    manifest = run_manifest(run)
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
    config = resolve(config, source.image_size)
    name, count = (
        student or config.student or "",
        students if students is not None else config.students or 1,
    )
    check(name, source.image_size)
    if count < 1:
        raise UsageError(f"students is {count}; it must be at least 1")
    with run.locked():
        place = choose_device(device)
        own = load(run.path, temperature=None)
        units = [_train_one(run, name, seed, config, source, own, place) for seed in range(count)]
        metrics = collect(run, name, units, source, own)
        unit = run.unit("metrics", metrics)
        if not unit.done:
            unit.write("metrics.json", json_bytes(metrics))
            unit.finish()
        run.seal({key: value for key, value in manifest.items() if key not in ("files", "seal")})
    return metrics


def _train_one(
    run: RunFolder,
    name: str,
    seed: int,
    config: Config,
    source: Source,
    data: DistilledSet,
    place: Device,
) -> Unit:
    """Train one student as a unit of work."""
    protocol = Protocol(data.epochs, config.learning_rate, stretch=config.stretch)
    files = run.manifest()["files"]
    inputs = {
        "architecture": name,
        "seed": seed,
        "protocol": asdict(protocol),
        "set": {key: digest for key, digest in files.items() if key.startswith(_SET)},
    }
    unit = run.unit(f"student-{file_stem(name)}-{seed}", inputs)
    if unit.done:
        return unit
    watch = Stopwatch()
    average, spread = source.mean_std
    model = build(
        name, len(source.classes), source.image_size, mean=average, std=spread, seed=seed
    ).to(place.torch)
    progress = train_student(model, data, source.test, protocol, seed=seed)
    facts = {
        "architecture": name,
        "classes": list(source.classes),
        "mean": list(average),
        "std": list(spread),
        "image_size": source.image_size,
    }
    unit.write(
        f"students/{file_stem(name)}-{seed}.safetensors", tensor_bytes(model.state_dict(), facts)
    )
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
        }
    )
    return unit


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _summed(matrices: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Return the sum of confusion matrices, each as rows of true class, predicted class, images."""
    total: Counter[tuple[int, int]] = Counter()
    for matrix in matrices:
        total.update({(true, taken): count for true, taken, count in matrix})
    return [[true, taken, count] for (true, taken), count in sorted(total.items())]


def collect(
    run: RunFolder, student: str, units: Sequence[Unit], source: Source, data: DistilledSet
) -> dict[str, Any]:
    """Return the figures of a run: of these students, and of how the set came about."""
    students = [
        {key: value for key, value in unit.facts.items() if key != "confusion"} for unit in units
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
        "confusion": _summed(unit.facts["confusion"] for unit in units),
        "kappa_mean": read_json(run.path / "geometry.json")["kappa_mean"],
        "seconds_per_image": sum(facts["seconds"] for facts in recovered) / len(data),
        "peak_memory": max(facts["peak_memory"] for facts in recovered),
        "bytes_images": sizes["images"],
        "bytes_labels": sizes["labels"],
        "label_epochs": data.epochs,
        "chance": 1 / len(source.classes),
        "full_data": full and {"test_accuracy": full, "architecture": student},
    }


def evaluate(folder: Path | str, device: str = "auto", data: str | None = None) -> dict[str, Any]:
    """Return the figures of a distilled set, training its students first if there are none.

    Args:
        folder: a run folder.
        device: ``auto``, ``cpu``, ``cuda`` ….
        data: where the real images lie now, if they moved.

    Returns:
        The content of ``metrics.json``: accuracy of the students on unseen real images, κ, cost
        and sizes.
    """
    run = RunFolder(folder)
    if "metrics.json" not in run_manifest(run)["files"]:
        return train(folder, device=device, data=data)
    # The students measured last; any that belong to another set or protocol are trained anew.
    earlier = read_json(run.path / "metrics.json")
    return train(folder, earlier["student"], len(earlier["students"]), device, data=data)
