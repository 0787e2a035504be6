"""Run and comparison folders as reta writes them, made without any training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from reta.storage import fingerprint

CLASSES = ["apple", "fish", "<script>alert('x')</script>", 'Kuh & Kalb "quoted"']
COLUMNS = ["start", "block 1", "anchor 1", "block 2", "anchor 2", "block 3", "final"]

Painter = Callable[[int, int, str], Image.Image]


def paint(label: int, index: int, moment: str, side: int = 32) -> Image.Image:
    """Draw a coloured shape on noise; real images have less noise."""
    draw = random.Random(f"{label} {index} {moment}")
    noise = 20 if moment in ("start", "anchor 1", "anchor 2") else 70
    pixels = bytes(128 + draw.randrange(-noise, noise) for _ in range(side * side * 3))
    image = Image.frombytes("RGB", (side, side), pixels)
    hue = (label * 80) % 255
    box = (side * 0.2, side * 0.25, side * 0.8, side * 0.7)
    shape = ImageDraw.Draw(image)
    (shape.ellipse if label % 2 else shape.rectangle)(box, fill=(hue, 200 - hue // 2, 255 - hue))
    return image


def noise(label: int, index: int, moment: str, side: int = 16) -> Image.Image:
    """Draw noise, which is quick and does not compress."""
    pixels = random.Random(f"{label} {index} {moment}").randbytes(side * side * 3)
    return Image.frombytes("RGB", (side, side), pixels)


def save_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "manifest.json":
        value = {"files": {}, **value}
        value.pop("seal", None)
        value["seal"] = fingerprint(value)
    if path.parent.name == "units":
        value = {"inputs": "", "files": {}, **value}
    path.write_text(json.dumps(value))


def manifest(method: str, classes: list[str], ipc: int, seed: int) -> dict[str, Any]:
    return {
        "format": 1,
        "reta": "0.1.0",
        "method": method,
        "summary": "retrieved anchors and topology alignment",
        "source": "RETA, arXiv 2602.24144",
        "data": data(classes),
        "classes": classes,
        "folders": [f"{label:03d}" for label in range(len(classes))],
        "ipc": ipc,
        "seed": seed,
        "hardware": {
            "cpu": "AMD EPYC 7B13",
            "cores": 8,
            "threads": 4,
            "gpu": None,
            "system": "Linux 6.1",
            "python": "3.12.3",
            "torch": "2.11.0",
        },
        "device": {"name": "cpu", "reason": "no GPU was found"},
        "created": "2026-03-01T12:00:00+00:00",
        "recipe": {"objective": {"bn_weight": 0.01}, "start": {"type": "RealImages"}},
        "files": {},
    }


def data(classes: list[str]) -> dict[str, Any]:
    return {
        "name": "Tiny fruit",
        "note": "a made-up set",
        "fingerprint": "ab" * 32,
        "train": 5000,
        "test": 1000,
        "image_size": 32,
    }


def write_images(
    folder: Path, classes: list[str], ipc: int, side: int, painter: Painter | None
) -> None:
    draw = painter or partial(paint, side=side)
    for label in range(len(classes)):
        for index in range(ipc):
            path = folder / "images" / f"{label:03d}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(label, index, "final").save(path)
        sheet = Image.new("RGB", (side * len(COLUMNS), side * min(ipc, 4)))
        for row in range(min(ipc, 4)):
            for column, moment in enumerate(COLUMNS):
                sheet.paste(draw(label, row, moment), (side * column, side * row))
        (folder / "history").mkdir(exist_ok=True)
        sheet.save(folder / "history" / f"{label:03d}.png")


def recovery(labels: list[int], ipc: int, side: int) -> dict[str, Any]:
    steps = []
    for step in range(0, 300, 3):
        row = {
            "step": step,
            "teacher": step // 3 % 2,
            "loss": 0.3 + 3 * math.exp(-step / 60) + 0.1 * math.sin(step),
            "bn_gap": 30 + 200 * math.exp(-step / 90),
        }
        if step % 15 == 0:
            row |= {"topology": 2 + 5 * math.exp(-step / 80), "gradient_ratio": 0.2 + step / 2000}
        steps.append(row)
    connections = [
        {
            "step": step,
            "fit_gap": 0.031,
            "complexity": 0.000213,
            "distinct_anchors": ipc * 0.6,
            "kept_anchors": 0.25,
            "contraction_ratio": 0.87,
        }
        for step in (100, 200)
    ]
    history = {"columns": COLUMNS, "cell": side, "rows": min(ipc, 4)}
    # The start, then two connections; every second image takes the first one's anchor.
    anchors = [
        [[1000 * step + 10 * label + image // 2 * 2 for image in range(ipc)] for label in labels]
        for step in range(3)
    ]
    return {
        "labels": labels,
        "anchors": anchors,
        "seconds": 41.5,
        "steps": steps,
        "connections": connections,
        "history": history,
    }


def geometry(classes: list[str]) -> dict[str, Any]:
    lengths = [index / 40 for index in range(41)]
    curves = {
        "real": [
            [max(1, round(10 - 14 * e)) for e in lengths],
            [int(0.5 < e < 0.8) for e in lengths],
        ],
        "synthetic": [[max(1, round(10 - 22 * e)) for e in lengths], [0 for _ in lengths]],
    }
    diagrams = {
        "real": [[[0, 0.1 + 0.07 * i] for i in range(9)], [[0.5, 0.8], [0.62, 0.7]]],
        "synthetic": [[[0, 0.05 + 0.05 * i] for i in range(9)], [[0.45, 0.52]]],
        "max_length": 1.0,
        "images": {
            "real": [[[0.1, 0.5], [0.9, 0.2]], [[0.3, 0.0], [0.0, 0.4]]],
            "synthetic": [[[0.1, 0.2], [0.3, 0.2]], [[0.0, 0.0], [0.0, 0.1]]],
        },
    }
    labels = range(min(len(classes), 10))
    return {
        "kappa": [0.2 + 0.11 * label for label in range(len(classes))],
        "kappa_mean": 0.365,
        "intra_class_distance": {"real": 0.612, "synthetic": 0.447},
        "betti": [{"label": label, "lengths": lengths, **curves} for label in labels],
        "diagrams": [{"label": label, **diagrams} for label in labels],
    }


def metrics(classes: list[str], students: int = 3, level: float = 0.579) -> dict[str, Any]:
    trained = [
        {
            "seed": seed,
            "last": level + 0.02 * (seed - 1),
            "best": level + 0.03 + 0.02 * (seed - 1),
            "curve": [
                [epoch, level * (1 - math.exp(-epoch / 15)) + 0.01 * math.sin(epoch + seed)]
                for epoch in range(0, 101, 5)
            ],
            "per_class": [min(1.0, level - 0.2 + 0.09 * label) for label in range(len(classes))],
            "seconds": 12.5,
        }
        for seed in range(students)
    ]
    return {
        "student": "convnet3",
        "accuracy": {
            "last_mean": level,
            "last_std": 0.0213,
            "best_mean": level + 0.031,
            "best_std": 0.018,
        },
        "students": trained,
        "confusion": confusion(len(classes)),
        "kappa_mean": 0.365,
        "seconds_per_image": 1.04,
        "peak_memory": 1_900_000_000,
        "bytes_images": 123_456,
        "bytes_labels": 4_200_000,
        "label_epochs": 100,
        "chance": 1 / len(classes),
        "full_data": {"test_accuracy": 0.802, "architecture": "resnet18", "epochs": 50},
    }


def confusion(classes: int) -> list[list[int]]:
    """Of the 30 images of a class, 20 are recognised and 10 taken for the next class."""
    right = [[label, label, 20] for label in range(classes)]
    return sorted([*right, *([label, (label + 1) % classes, 10] for label in range(classes))])


def evaluation(name: str, details: dict[str, Any], **figures: list[float]) -> dict[str, Any]:
    """Return the result of an evaluation as `reta evaluate` writes it."""
    return {
        "evaluation": name,
        "settings": {"type": "Anything", "per_class": 0},
        "student": "convnet3",
        "seeds": [0, 1, 2],
        "figures": {
            key: {"title": key.replace("_", " "), "unit": "share", "better": "higher", "values": v}
            for key, v in figures.items()
        },
        "details": details,
        "notes": [f"A note on {name}, with <b>signs</b>."],
    }


CORRUPTIONS = {
    "corruptions": {
        name: {str(severity): [level - 0.05 * severity] * 3 for severity in (1, 3, 5)}
        for name, level in (("gaussian_noise", 0.6), ("fog", 0.5), ("jpeg_compression", 0.55))
    },
    "images": 1000,
}


def continual() -> dict[str, Any]:
    """Two buffers, two memories, two class orders of three stages."""

    def orders(level: float) -> dict[str, Any]:
        return {
            "incremental": [level, level + 0.02],
            "final": [level - 0.1, level - 0.12],
            "forgetting": [0.2, 0.22],
            "accuracy": [[0.9, level, level - 0.1], [0.88, level, level - 0.12]],
            "matrix": [[[0.9]], [[0.88]]],
        }

    curves = {
        "own": {"20": orders(0.6), "40": orders(0.7)},
        "random": {"20": orders(0.5), "40": orders(0.55)},
    }
    return {"memory": "offline", "learner": "scratch", "curves": curves}


def audit() -> dict[str, Any]:
    """One image whose anchor explains half of it, and one student that was attacked."""
    image = {
        "class": "apple",
        "index": 1,
        "close": True,
        "nearest": [{"image": 77, "distance": 0.125}],
        "hash": {"image": 78, "bits": 9},
        "anchor": {"image": 2000, "weight": 0.5, "explained": 0.51, "explained_by_others": 0.1},
    }
    attack = {"auc": 0.62, "interval": [0.55, 0.69], "members": 100, "others": 100}
    return {
        "images": [image, {**image, "class": "<i>", "anchor": None}],
        "close": 0.25,
        "membership": [{"pool": attack, "anchors": attack}],
    }


def write_evaluations(folder: Path) -> None:
    """Write results of evaluations the page knows how to draw, and of one it does not."""
    results = [
        evaluation(
            "corruptions", CORRUPTIONS, corrupted=[0.4, 0.42, 0.41], clean=[0.58, 0.6, 0.57]
        ),
        evaluation("architectures", {"resnet18": {"last": [0.5, 0.52], "best": [0.55, 0.53]}}),
        evaluation("continual", continual(), own_40=[0.7, 0.72]),
        evaluation("audit", audit(), close=[0.25]),
        evaluation("ranking", {"trainings": {"real_hard": {"rate": 0.01, "test": [0.8, 0.82]}}}),
        evaluation("horoscope", {"stars": {"sirius": [1.5, 2.5]}, "sky": "clear"}, luck=[0.75]),
    ]
    for result in results:
        save_json(folder / "evaluations" / f"{result['evaluation']}.json", result)


def write_run(
    folder: Path,
    *,
    classes: list[str] | None = None,
    ipc: int = 4,
    side: int = 32,
    method: str = "reta",
    seed: int = 0,
    level: float = 0.579,
    painter: Painter | None = None,
) -> Path:
    """Write a whole run folder."""
    classes = CLASSES if classes is None else classes
    save_json(folder / "manifest.json", manifest(method, classes, ipc, seed))
    (folder / "config.yaml").write_text("method: reta\nschedule:\n  steps: 300\n  note: <b>&\n")
    for index, (name, accuracy) in enumerate([("resnet18", 0.79), ("convnet3", 0.74)]):
        facts = {
            "architecture": name,
            "test_accuracy": accuracy,
            "epochs": 60,
            "seconds": 130.0,
            "parameters": 11_173_962 // (1 + 30 * index),
        }
        save_json(folder / f"units/teacher-{index}.json", {"facts": facts})
    facts = recovery(list(range(len(classes))), ipc, side)
    save_json(folder / "units/recover-000.json", {"facts": facts})
    write_images(folder, classes, ipc, side, painter)
    save_json(folder / "geometry.json", geometry(classes))
    save_json(folder / "metrics.json", metrics(classes, level=level))
    write_evaluations(folder)
    return folder


def measured(name: str, levels: dict[str, float], baseline: str = "") -> dict[str, Any]:
    """Return an evaluation of all methods as `reta compare` summarises it: two seeds."""
    rows: dict[str, Any] = {}
    for method, level in levels.items():
        difference = level - levels.get(baseline, level)
        rows[method] = {
            "values": [[level - 0.01, level], [level, level + 0.01]],
            "mean": level,
            "std_seeds": 0.0071,
            "std_students": 0.0069,
            "seeds": 2,
            "students": 2,
            "difference": None
            if method == baseline or not baseline
            else {"mean": difference, "t_low": difference - 0.03, "t_high": difference + 0.03},
        }
    figure = {"title": f"{name} accuracy", "unit": "share", "better": "higher", "rows": rows}
    return {"figures": {name: figure}, "order": [name], "notes": [f"A note on {name}."]}


def remembered() -> dict[str, Any]:
    """The same of a curve over two memories."""
    result: dict[str, Any] = {"figures": {}, "order": [], "notes": []}
    for size, gain in ((200, 0.1), (1000, 0.2)):
        name = f"incremental_{size}"
        result["figures"] |= measured(name, {key: gain + v for key, v in LEVELS.items()})["figures"]
        curve = {"title": "average incremental accuracy", "axis": "images in memory", "at": size}
        result["figures"][name]["curve"] = curve
        result["order"].append(name)
    return result


LEVELS = {"random": 0.53, "fadrm+": 0.571, "reta": 0.579}


def write_comparison(folder: Path, **options: Any) -> Path:
    """Write a comparison of three methods, ``reta`` with two distillation seeds."""
    names = {"random": ["random"], "fadrm+": ["fadrm-plus"], "reta": ["reta", "reta-seed1"]}
    for method, folders in names.items():
        for seed, name in enumerate(folders):
            level = LEVELS[method]
            write_run(folder / name, method=method, seed=seed, level=level, **options)
    rows = [
        {
            "method": method,
            "summary": f"what {method} does",
            "n": 3 * len(names[method]),
            "last_mean": level,
            "last_std": 0.012,
            "best_mean": level + 0.02,
            "best_std": 0.01,
            "kappa_mean": kappa,
            "contraction_ratio": ratio,
            "distinct_anchors": None if ratio is None else 6.3,
            "seconds_per_image": 0.01 if ratio is None else 1.2,
            "bytes_images": 123_456,
            "bytes_labels": 4_200_000,
        }
        for (method, level), kappa, ratio in zip(
            LEVELS.items(), [0.27, 1.68, 0.72], [None, 0.81, 0.9], strict=True
        )
    ]
    comparison = {
        "title": "Random, FADRM+ and RETA on tiny fruit",
        "methods": list(LEVELS),
        "runs": names,
        "command": "reta compare tiny --methods random,fadrm+,reta",
        "data": data(CLASSES),
        "rows": rows,
        "baseline": "fadrm+",
        "evaluations": {
            "accuracy": measured("last", LEVELS, "fadrm+"),
            "corruptions": measured("corrupted", {"random": 0.3, "fadrm+": 0.41, "reta": 0.4}),
            "continual": remembered(),
        },
        "sweeps": [
            {
                "method": "reta",
                "setting": "topology.weight",
                "points": [{"value": 0.5, "method": "reta"}, {"value": 3, "method": "fadrm+"}],
            }
        ],
        "published": {"accuracy": {"reta": {"value": 0.632, "source": "Table 1 of the paper"}}},
    }
    save_json(folder / "comparison.json", comparison)
    return folder
