"""Put every method beside the others under one protocol, at CPU scale; fill in docs/methods.md.

    python benchmarks/methods.py FOLDER                all methods; FOLDER holds CIFAR-100
    python benchmarks/methods.py FOLDER edc dm         some of them: their rows are made anew
    python benchmarks/methods.py FOLDER --seeds 5      more seeds; those that are there stay
    python benchmarks/methods.py                       only the tables of docs/methods.md

The first ten classes of CIFAR-100 at 16 px, two images of each, as many steps for every decoupled
method, less for an engine whose steps are dear (`SHRUNK`). Each method is a `reta compare` in a
process of its own; all share teachers and pool in runs/. Interrupted, the same command goes on.
Numbers are kept by method in results/methods-cifar100-first10-16px-ipc2.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reta.bench.measure import peak_bytes
from reta.comparison import compare
from reta.config import Config, setting_of
from reta.evaluation.uncertainty import paired_difference
from reta.executor import Serial
from reta.methods import METHODS
from reta.pipeline import keep_config
from reta.preparation import open_data, prepare, recipe_of
from reta.reporting.published import published
from reta.storage import RunFolder, read_json
from reta.synthesis.engine import Settings, Work
from reta.synthesis.loop import recover
from reta.synthesis.recipe import Recipe

ROOT = Path(__file__).parents[1]
NAME = "methods-cifar100-first10-16px-ipc2"
RESULT = ROOT / "results" / f"{NAME}.json"
PAGE = ROOT / "docs" / "methods.md"
BASELINE = "random"
SETTINGS: dict[str, Any] = {
    "image_size": 16,
    "ipc": 2,
    "classes": 10,
    "per_class": 100,
    "teacher_epochs": 10,
    "steps": 60,
    "label_epochs": 40,
    "students": 1,
}
SHRUNK: dict[str, str] = {  # what does not fit an hour of one core otherwise
    "dc": "engine.steps=20 engine.lessons=50",  # twice so many matches, each of all classes
    "dsa": "engine.steps=20 engine.lessons=50",
    "idc": "engine.steps=8",  # ten matches with each network
    "mtt": "engine.experts=3 engine.last_start=10",  # an expert takes as long as all the steps
    "cao2": "engine.steps=20 engine.width=12 engine.training=300 engine.sampling=20",
}
CHEAP = ("random", "medium", "typical", "herding", "k-center", "el2n", "rded", "dm")  # first
PAPER = [  # settings of papers' tables; nothing here is measured at one of them
    ("CIFAR-100", {"data": "cifar100", "classes": 100, "image_size": 32}),
    ("Tiny-ImageNet", {"data": "tiny-imagenet", "classes": 200, "image_size": 64}),
    ("ImageNet-1K", {"data": "imagenet", "classes": 1000, "image_size": 224}),
]


@dataclass(frozen=True)
class Place:
    """Where things lie."""

    data: str
    out: Path

    @property
    def config(self) -> Config:
        """What all methods share."""
        return Config(self.data, **SETTINGS)


def make_ready(place: Place) -> None:
    """Train the teachers and look at the real images, once for all methods."""
    config, folder = place.config, RunFolder(place.out)
    executor = Serial()
    with folder.locked():
        source = open_data(config)
        keep_config(folder, config, source)
        prepare(config, source, folder, executor.device("auto"), executor)


def words_of(method: str) -> str:
    """Return a method with its own settings, as `reta compare` takes it."""
    return f"{method} {SHRUNK.get(method, '')}".strip()


def measure(place: Place, method: str, seeds: int) -> dict[str, Any]:
    """Return the row of one method."""
    command = f"python benchmarks/methods.py cifar100 {method} --seeds {seeds}"
    label = words_of(method)
    made = compare(place.config, [label], place.out, seeds=seeds, command=command)
    runs = made["runs"][label]
    records = [RunFolder(place.out / name).records() for name in runs]
    ground = [
        sum(one["facts"]["seconds"] for name, one in own.items() if name.startswith("groundwork"))
        for own in records
    ]
    metrics = [read_json(place.out / name / "metrics.json") for name in runs]
    manifest = RunFolder(place.out / runs[0]).manifest()
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "accuracy": [[one["last"] for one in metric["students"]] for metric in metrics],
        "kappa": [metric["kappa_mean"] for metric in metrics],
        "seconds_per_image": [metric["seconds_per_image"] for metric in metrics],
        "groundwork_seconds": ground,
        "own_settings": SHRUNK.get(method, ""),
        "teacher_accuracy": made["teacher_accuracy"],
        "hardware": manifest["hardware"],
        "commit": commit.stdout.strip(),
    }


def weigh(place: Place) -> None:
    """Add to each row the bytes of tensors that recovering all images holds at its peak."""
    config, folder = place.config, RunFolder(place.out)
    executor = Serial()
    with folder.locked():
        source = open_data(config)
        device = executor.device("auto")
        prepared = prepare(config, source, folder, device, executor)
    kept = read_json(RESULT)
    for method, row in kept["methods"].items():
        if "recover_bytes" in row:
            continue
        few = {"engine.steps": 2, "engine.experts": 1, "engine.training": 2}
        given = dict(map(setting_of, SHRUNK.get(method, "").split()))
        options = given | {name: value for name, value in few.items() if name in given}
        recipe = recipe_of(replace(prepared.config, method=method, steps=4, options=options))
        labels, settings = range(len(source.classes)), Settings(config.ipc, flip=source.flip)
        ground = Work(prepared.committee, prepared.pool, labels, settings, recipe.start)
        engine = recipe.engine
        laid = [engine.lay(index, ground) for index in range(engine.groundwork)] if engine else []
        work = partial(
            recover, recipe, prepared.committee, prepared.pool, labels, settings, laid=laid
        )
        row["recover_bytes"] = peak_bytes(work, device.torch)
        _write(kept)


def _write(kept: dict[str, Any]) -> None:
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def keep(method: str, row: dict[str, Any]) -> None:
    """Write the row of a method beside those of the others."""
    kept = read_json(RESULT) if RESULT.exists() else {}
    rows = kept.get("methods", {})
    for other, known in rows.items():
        if known["teacher_accuracy"] != row["teacher_accuracy"]:
            raise SystemExit(
                f"{other} was measured with other teachers {known['teacher_accuracy']}; measure "
                f"all methods anew: remove {RESULT}"
            )
    _write({"settings": SETTINGS, "methods": {**rows, method: row}})


# --- the tables -----------------------------------------------------------------------------------


def idea(recipe: Recipe) -> str:
    """Return a link to the module that states the method's equations."""
    plain = Recipe("", "", recipe.start)
    parts = (
        recipe.engine,
        recipe.preserve,
        recipe.topology,
        recipe.connection,
        None if type(recipe.objective) is type(plain.objective) else recipe.objective,
        None if type(recipe.schedule).__name__ in ("Schedule", "NoneType") else recipe.schedule,
        recipe.objective if recipe.schedule else recipe.start,
    )
    carrier = next(part for part in parts if part is not None)
    path = Path(sys.modules[type(carrier).__module__].__file__ or "").relative_to(ROOT / "src")
    return f"[`{path.name}`](../src/{path.as_posix()})"


def needs(recipe: Recipe) -> str:
    """Return what a method needs, in words."""
    found = []
    if recipe.engine is None and recipe.schedule is not None:
        found.append("first teacher" if recipe.committee == "first" else "committee")
    elif recipe.engine is None:
        found.append("no optimisation")
    else:
        found.append("an engine of its own")
        if recipe.engine.together:
            found.append("all classes at once")
        if recipe.engine.groundwork:
            found.append("networks trained on real images")
        if type(recipe.engine).__name__ == "ConditionAware":
            found.append("diffusers")
    own = type(recipe.objective).__name__
    if own in ("GeneralizedMatching", "ClasswiseMatching", "BarycentreMatching"):
        found.append("a pass over real images")
    if own == "BarycentreMatching":
        found.append("POT")
    start = type(recipe.start).__name__
    found.append("starts from noise" if start == "Noise" else "starts from real images")
    return ", ".join(found)


def own_table() -> str:
    """Return the table of what was measured here."""
    kept = read_json(RESULT)
    rows = kept["methods"]
    lines = [
        "| method | idea | equations | needs | accuracy, % | vs random [95 %] | κ | s/image | "
        "memory, MB |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for method, recipe in METHODS.items():
        said = f"| `{method}` | {recipe.summary} | {idea(recipe)} | {needs(recipe)} |"
        row = rows.get(method)
        lines.append(said + (_numbers(rows, row, method) if row else " – | – | – | – | – |"))
    taught = ", ".join(
        f"{name} {100 * value:.1f} %" for name, value in rows[BASELINE]["teacher_accuracy"].items()
    )
    settings = ", ".join(f"{name} {value}" for name, value in kept["settings"].items())
    facts = rows[BASELINE]["hardware"]
    counts = sorted({len(row["accuracy"]) for row in rows.values()})
    seeds = " or ".join(map(str, counts))
    commits = ", ".join(sorted({row["commit"] for row in rows.values()}))
    return "\n".join(
        [
            *lines,
            "",
            f"CIFAR-100, first ten classes; {settings}; {seeds} distillation seeds; commit "
            f"{commits}; teachers {taught}; student convnet3, last epoch, ± over seeds. "
            f"{facts['cpu']}, {facts['threads']} thread(s), torch {facts['torch']}; the machine "
            "was shared, so seconds are upper bounds; a groundwork (experts, a diffusion model) is "
            "in them. Memory is that of the tensors held at the peak of recovering the twenty "
            "images, teachers and real images not counted.",
        ]
    )


def _numbers(rows: dict[str, Any], row: dict[str, Any], method: str) -> str:
    seeds = [100 * mean(own) for own in row["accuracy"]]
    both = list(zip(row["accuracy"], rows[BASELINE]["accuracy"], strict=False))
    gap = None if method == BASELINE else paired_difference(*zip(*both, strict=True))
    versus = "–"
    if gap:
        low, high = (100 * value for value in (gap.t_low, gap.t_high))
        versus = f"{100 * gap.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    weight = row.get("recover_bytes")
    memory = "–" if weight is None else f"{weight / 2**20:.0f}"
    scatter = f" ± {stdev(seeds):.1f}" if len(seeds) > 1 else ""
    return (
        f" {mean(seeds):.1f}{scatter} | {versus} | {mean(row['kappa']):.3f} | "
        f"{_seconds(row):.2f} | {memory} |"
    )


def _seconds(row: dict[str, Any]) -> float:
    """Return the seconds per image, the groundwork of an engine included."""
    images = SETTINGS["classes"] * SETTINGS["ipc"]
    return mean(row["seconds_per_image"]) + mean(row.get("groundwork_seconds", [0])) / images


def published_table() -> str:
    """Return what papers report for ResNet-18, by method."""
    head = [f"{name} {ipc}" for name, _ in PAPER for ipc in (1, 10, 50)]
    lines = [f"| method | {' | '.join(head)} | source |", "|---" * (len(head) + 2) + "|"]
    for method in METHODS:
        cells, sources = [], []
        for _, setting in PAPER:
            for ipc in (1, 10, 50):
                found = published(method, "accuracy", ipc=ipc, student="resnet18", **setting)
                cells.append(f"{100 * found['value']:.1f}" if found else "–")
                sources += [found["source"]] if found else []
        if sources:
            named = "; ".join(dict.fromkeys(sources))
            lines.append(f"| `{method}` | {' | '.join(cells)} | {named} |")
    return "\n".join(lines)


def fill() -> None:
    """Put the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("methods", own_table), ("published", published_table)):
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    PAGE.write_text(text, encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is asked for, each method in a process of its own, and fill in the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", help="where CIFAR-100 lies")
    parser.add_argument("methods", nargs="*", help="names of `reta methods`; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="of distillation")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / NAME)
    asked = parser.parse_args(words)
    if asked.data is None:
        fill()
        return
    place = Place(asked.data, asked.out)
    in_a_process(make_ready, place)
    for method in asked.methods or [*CHEAP, *(name for name in METHODS if name not in CHEAP)]:
        print(method, flush=True)
        in_a_process(row_of, place, method, asked.seeds)
    in_a_process(weigh, place)
    fill()


def row_of(place: Place, method: str, seeds: int) -> None:
    """Measure a method and keep its row."""
    keep(method, measure(place, method, seeds))


def in_a_process(work: Callable[..., None], *given: Any) -> None:
    """Do some work in a process that begins as this one is: with its libraries and nothing else."""
    process = multiprocessing.get_context("fork").Process(target=work, args=given)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed; the same command goes on where it stopped")


if __name__ == "__main__":
    main()
