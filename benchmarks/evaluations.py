"""Measure every method by every evaluation at CPU scale; write results/ and docs/results.md.

    python benchmarks/evaluations.py --plan                        what will be done, and its cost
    python benchmarks/evaluations.py --cifar100 FOLDER             everything; some 40 minutes
    python benchmarks/evaluations.py digits-sweeps                 one experiment
    python benchmarks/evaluations.py --smoke                       everything in miniature

Each experiment is one `reta compare`; interrupted, the same command continues. The sentences of
docs/results.md are computed from the numbers: a claim of the paper holds if the 95 % interval of
the paired difference (Student's t over distillation seeds) is above zero, fails if it is below,
and is not decided otherwise. All seeds share one committee, so no interval covers its choice.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reta.comparison import compare
from reta.config import Config
from reta.evaluation.uncertainty import Difference, paired_difference
from reta.progress import show_progress
from reta.reporting import write_report
from reta.reporting.tables import cell, difference
from reta.storage import RunFolder, read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "evaluations"
PAGE = ROOT / "docs" / "results.md"
METHODS = ("random", "rded", "sre2l", "fadrm", "fadrm+", "reta-drc", "reta-pta", "reta-paper")
BEST = ("random", "fadrm+", "reta", "reta-paper")
MEMORIES = {
    "continual.sets": "per-size",
    "continual.references": (),
    "continual.orders": 1,
    "continual.epochs": 2,
}
CORRUPTIONS = {"corruptions.severities": (1, 3, 5)}


@dataclass(frozen=True)
class Experiment:
    """One comparison.

    Attributes:
        title: of its section.
        config: settings.
        methods: what is compared.
        evaluations: what is measured.
        options: settings of the evaluations.
        sweep: settings that are varied.
        minutes: about what three seeds take on one free core.
    """

    title: str
    config: Config
    methods: tuple[str, ...]
    evaluations: tuple[str, ...] = ("accuracy",)
    options: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    minutes: float = 0


DIGITS = Config(
    "digits",
    ipc=2,
    per_class=60,
    teacher_epochs=20,
    steps=150,
    label_epochs=100,
    students=2,
)
MEMORY = replace(DIGITS, per_class=40, teacher_epochs=15, steps=50, label_epochs=20, students=1)
EXPERIMENTS = {
    "digits": Experiment(
        "Digits, 2 images per class",
        DIGITS,
        METHODS,
        ("accuracy", "corruptions", "continual", "diversity", "efficiency"),
        {
            **CORRUPTIONS,
            "corruptions.per_class": 8,
            "continual.epochs": 2,
            "continual.orders": 2,
        },
        minutes=15,
    ),
    "digits-sweeps": Experiment(
        "Sweeps on digits, 5 images per class",
        replace(DIGITS, ipc=5, steps=100, label_epochs=60, students=1),
        ("reta-paper",),
        sweep={
            "connection.trade_off": (0, 0.1, 0.3, 1.0),
            "topology.weight": (0.1, 0.5, 1.0, 3.0),
        },
        minutes=8,
    ),
    "cifar100-first10": Experiment(
        "CIFAR-100, first 10 classes, 2 images per class",
        Config(
            "cifar100",
            ipc=2,
            classes=10,
            per_class=100,
            teacher_epochs=10,
            steps=100,
            label_epochs=60,
            students=2,
        ),
        METHODS,
        ("accuracy", "corruptions", "diversity", "efficiency"),
        {**CORRUPTIONS, "corruptions.per_class": 5},
        minutes=20,
    ),
    "digits-ranking-audit": Experiment(
        "Ranking scores and audit: digits, 3 images per class",
        replace(DIGITS, ipc=3, label_epochs=60),
        BEST,
        ("accuracy", "ranking", "audit"),
        {
            "ranking.rounds": 1,
            "ranking.rates": (5e-3,),
            "ranking.epochs": 20,
            "ranking.real_epochs": 2,
        },
        minutes=15,
    ),
    "digits-continual": Experiment(
        "Memories of 10 to 50 images: digits, each distilled at its own size",
        replace(MEMORY, ipc=3),
        ("random", "fadrm+", "reta"),
        ("accuracy", "continual"),
        {**MEMORIES, "continual.sizes": (10, 30, 50)},
        minutes=10,
    ),
    "digits-continual-stages": Experiment(
        "Memories of 20 and 50 images: digits, each distilled stage by stage",
        replace(MEMORY, ipc=2),
        ("random", "fadrm+", "reta"),
        ("accuracy", "continual"),
        {**MEMORIES, "continual.sizes": (20, 50), "continual.memory": "per-stage"},
        minutes=10,
    ),
}


def smoke(experiment: Experiment) -> Experiment:
    """Return the same experiment in miniature, only to see it run."""
    config = replace(
        experiment.config,
        classes=3,
        per_class=12,
        teachers=("convnet3",),
        teacher_epochs=1,
        steps=6,
        label_epochs=2,
        students=1,
    )
    options = dict(experiment.options)
    if "corruptions" in experiment.evaluations:
        options |= {"corruptions.per_class": 2, "corruptions.severities": (5,)}
    if "ranking" in experiment.evaluations:
        options |= {"ranking.rounds": 1, "ranking.rates": (1e-3,), "ranking.real_epochs": 1}
    if "continual" in experiment.evaluations:
        options |= {"continual.steps": 3, "continual.epochs": 1, "continual.orders": 1}
        if "continual.sizes" in options:
            options |= {"continual.sizes": (3, 6)}
    sweep = {name: values[:2] for name, values in experiment.sweep.items()}
    return replace(experiment, config=config, options=options, sweep=sweep)


def run(name: str, experiment: Experiment, seeds: int, out: Path) -> dict[str, Any]:
    """Do one experiment and return its numbers, with the cost of every cell."""
    began = time.monotonic()
    comparison = compare(
        experiment.config,
        experiment.methods,
        out / name,
        seeds=seeds,
        evaluations=experiment.evaluations,
        options=experiment.options,
        sweep=experiment.sweep,
        command=f"python benchmarks/evaluations.py {name}",
    )
    write_report(out / name)
    first = out / name / next(iter(comparison["runs"].values()))[0]
    manifest = RunFolder(first).manifest()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        **comparison,
        "title": experiment.title,
        "settings": {
            key: getattr(experiment.config, key)
            for key in ("ipc", "classes", "per_class", "teacher_epochs", "steps", "label_epochs")
        },
        "options": dict(experiment.options),
        "seconds": costs(out / name, comparison["runs"]),
        "wall_seconds": time.monotonic() - began,
        "hardware": manifest["hardware"],
        "reta": manifest["reta"],
        "commit": commit.stdout.strip(),
    }


def costs(folder: Path, runs: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return the seconds of every method by stage, over all its runs, from the unit records."""
    table: dict[str, dict[str, float]] = {}
    for method, names in {"shared": [""], **runs}.items():
        own = table.setdefault(method, {})
        for name in names:
            for unit, record in RunFolder(folder / name).records().items():
                stage = unit.split("-")[0]
                stage = unit if stage == "evaluation" else stage
                if seconds := record["facts"].get("seconds"):
                    own[stage] = own.get(stage, 0.0) + seconds
    return table


# --- what the numbers say -------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """An ordering the paper reports.

    Attributes:
        text: the claim.
        evaluation, figure: where it is looked for.
        better, worse: the methods.
    """

    text: str
    evaluation: str
    figure: str
    better: str
    worse: str


CLAIMS = (
    Claim("FADRM+ above SRe2L in accuracy (Table 1)", "accuracy", "last", "fadrm+", "sre2l"),
    Claim("FADRM+ above RDED in accuracy (Table 1)", "accuracy", "last", "fadrm+", "rded"),
    Claim("FADRM+ above random real images in accuracy", "accuracy", "last", "fadrm+", "random"),
    Claim("RETA above FADRM+ in accuracy (Table 1)", "accuracy", "last", "reta-paper", "fadrm+"),
    Claim("DRC alone above FADRM+ (Table 3)", "accuracy", "last", "reta-drc", "fadrm+"),
    Claim("PTA alone above FADRM+ (Table 3)", "accuracy", "last", "reta-pta", "fadrm+"),
    Claim("RETA above DRC alone (Table 3)", "accuracy", "last", "reta-paper", "reta-drc"),
    Claim("RETA above PTA alone (Table 3)", "accuracy", "last", "reta-paper", "reta-pta"),
    Claim(
        "RETA above FADRM+, corrupted (Table 4)", "corruptions", "corrupted", "reta-paper", "fadrm+"
    ),
    Claim(
        "RETA above random as memory (Fig. 6)", "continual", "incremental", "reta-paper", "random"
    ),
    Claim(
        "RETA contracts classes less than FADRM+ (κ)", "accuracy", "kappa", "reta-paper", "fadrm+"
    ),
    Claim("PTA undoes the contraction of DRC (κ)", "accuracy", "kappa", "reta-paper", "reta-drc"),
)


def gap(result: Mapping[str, Any], claim: Claim) -> Difference | None:
    """Return the paired difference a claim is about; positive is in its favour."""
    figures = result["evaluations"].get(claim.evaluation, {}).get("figures", {})
    rows = figures.get(claim.figure, {}).get("rows", {})
    if claim.better not in rows or claim.worse not in rows:
        return None
    one, other = rows[claim.better]["values"], rows[claim.worse]["values"]
    if figures[claim.figure]["better"] == "lower":
        one, other = other, one
    return paired_difference(one, other)


def verdict(found: Difference, seeds: int) -> str:
    """Return what an interval says of a claim."""
    if seeds < 2:
        return "not decided: one seed"
    if found.t_low > 0:
        return "**holds**"
    if found.t_high < 0:
        return "**does not hold**: the opposite was measured"
    return "not decided"


def claims(result: Mapping[str, Any]) -> list[str]:
    """Return a line for every claim that can be looked for in a result."""
    lines = []
    for claim in CLAIMS:
        found = gap(result, claim)
        if found is None:
            continue
        unit = result["evaluations"][claim.evaluation]["figures"][claim.figure]["unit"]
        scale, form = (100, "+.1f") if unit == "share" else (1, "+.3f")
        values = [scale * value for value in (found.mean, found.t_low, found.t_high)]
        mean, low, high = (f"{value:{form}}" for value in values)
        lines.append(
            f"| {claim.text} | {mean} | [{low}, {high}] | {verdict(found, result['seeds'])} |"
        )
    if not lines:
        return []
    return [
        "| the paper says | difference in its favour | 95 % | here it |",
        "|---|---:|---:|---|",
        *lines,
        "",
    ]


def overhead(result: Mapping[str, Any]) -> list[str]:
    """Return what RETA costs more than FADRM+."""
    rows = result["evaluations"]["accuracy"]["figures"]["seconds_per_image"]["rows"]
    if "reta-paper" not in rows or "fadrm+" not in rows:
        return []
    ratio = rows["reta-paper"]["mean"] / rows["fadrm+"]["mean"]
    return [
        f"Distilling an image took {ratio:.2f} times as long with RETA as with FADRM+ "
        "(the paper: 1.31 s against 1.09 s, 1.20 times, on a GPU).",
        "",
    ]


def sweeps(result: Mapping[str, Any]) -> list[str]:
    """Return a table per sweep, and where its best value lies."""
    lines = []
    figure = result["evaluations"]["accuracy"]["figures"]["last"]
    kappa = result["evaluations"]["accuracy"]["figures"]["kappa"]["rows"]
    for sweep in result["sweeps"]:
        rows = figure["rows"]
        points = [(point["value"], point["method"]) for point in sweep["points"]]
        lines += [f"| {sweep['setting']} | accuracy, % | κ |", "|---:|---:|---:|"]
        lines += [
            f"| {value} | {cell(rows[label], 'share')} | {kappa[label]['mean']:.3f} |"
            for value, label in points
        ]
        lines += ["", _best(sweep["setting"], points, rows, result["seeds"]), ""]
    return lines


def _best(
    setting: str,
    points: Sequence[tuple[Any, str]],
    rows: Mapping[str, Mapping[str, Any]],
    seeds: int,
) -> str:
    """Say where the best value of a sweep lies, and whether it stands out."""
    value, best = max(points, key=lambda point: rows[point[1]]["mean"])
    others = [other for other in points if other[1] != best]
    gaps = {
        other: paired_difference(rows[best]["values"], rows[label]["values"])
        for other, label in others
    }
    beaten = [
        str(other) for other, found in gaps.items() if seeds > 1 and found and found.t_low > 0
    ]
    place = (
        "inside the range" if points[0][1] != best != points[-1][1] else "at an end of the range"
    )
    told = (
        f"; told apart from {', '.join(beaten)}" if beaten else "; told apart from no other value"
    )
    return f"Highest mean at {setting} = {value}, {place}{told}."


def section(result: Mapping[str, Any]) -> list[str]:
    """Return the section of one experiment."""
    facts, setting = result["hardware"], result["settings"]
    teachers = ", ".join(f"{k} {100 * v:.1f} %" for k, v in result["teacher_accuracy"].items())
    chosen = ", ".join(f"{key} {value}" for key, value in setting.items() if value is not None)
    lines = [
        f"## {result['title']}",
        "",
        f"{result['seeds']} distillation seeds, {result['students']} student(s) "
        f"{result['student']} each; teachers: {teachers}. {chosen}.",
        "",
    ]
    if result["sweeps"]:
        lines += sweeps(result)
    else:
        lines += [*claims(result), *overhead(result), *curves(result), *method_table(result)]
    return [
        *lines,
        *(f"- {note}" for note in _notes(result)),
        "",
        f"`{result['command']}`, {_minutes(result)}, commit {result['commit']}, {facts['cpu']}, "
        f"{facts['threads']} thread(s), torch {facts['torch']}.",
        "",
    ]


def _minutes(result: Mapping[str, Any]) -> str:
    total = sum(sum(stages.values()) for stages in result["seconds"].values())
    return f"{total / 60:.0f} minutes of work"


def _notes(result: Mapping[str, Any]) -> list[str]:
    found = [note for one in result["evaluations"].values() for note in one["notes"]]
    if "corruptions.severities" in result["options"]:
        chosen = ", ".join(map(str, result["options"]["corruptions.severities"]))
        found.append(f"Of the five severities {chosen} were measured.")
    return list(dict.fromkeys(found))


HEADLINES = (
    ("accuracy", "last"),
    ("accuracy", "kappa"),
    ("corruptions", "corrupted"),
    ("continual", "incremental"),
    ("continual", "forgetting"),
    ("diversity", "coverage"),
    ("ranking", "lrs"),
    ("ranking", "ars"),
    ("ranking", "hlr"),
    ("ranking", "ior"),
    ("audit", "close"),
    ("audit", "membership"),
    ("audit", "membership_anchors"),
    ("audit", "anchor_weight"),
    ("audit", "explained"),
    ("accuracy", "seconds_per_image"),
)


def method_table(result: Mapping[str, Any]) -> list[str]:
    """Return a table of the headline figures, and one of the cost of each cell."""
    shown = [
        result["evaluations"][name]["figures"][figure]
        for name, figure in HEADLINES
        if figure in result["evaluations"].get(name, {}).get("figures", {})
    ]
    units = {"share": ", %", "seconds": ", s"}
    titles = [figure["title"] + units.get(figure["unit"], "") for figure in shown]
    last = result["evaluations"]["accuracy"]["figures"]["last"]["rows"]
    lines = [
        f"| method | {titles[0]} | vs {result['baseline']} [95 %, bootstrap] | "
        + " | ".join(titles[1:])
        + " |",
        "|---|" + "---:|" * (len(titles) + 1),
    ]
    for method in result["methods"]:
        own = [(figure["rows"].get(method), figure["unit"]) for figure in shown]
        cells = [cell(row, unit) if row else "–" for row, unit in own]
        cells.insert(1, difference(last[method], "share"))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    stages = sorted({stage for own in result["seconds"].values() for stage in own})
    lines += [
        "",
        "Seconds of work per cell, all seeds together:",
        "",
        f"| method | {' | '.join(stages)} |",
        "|---|" + "---:|" * len(stages),
    ]
    for method, own in result["seconds"].items():
        lines.append(f"| {method} | {' | '.join(f'{own.get(s, 0):.0f}' for s in stages)} |")
    return [*lines, ""]


def curves(result: Mapping[str, Any]) -> list[str]:
    """Return a table for every curve among the figures: a row per method, a column per point."""
    found: dict[tuple[str, str, str], dict[float, Mapping[str, Any]]] = {}
    for one in result["evaluations"].values():
        for figure in one["figures"].values():
            if curve := figure.get("curve"):
                key = (curve["title"], curve["axis"], figure["unit"])
                found.setdefault(key, {})[curve["at"]] = figure["rows"]
    lines = []
    for (title, axis, unit), points in found.items():
        places = sorted(points)
        if len(places) < 2:
            continue
        percent = ", %," if unit == "share" else ""
        lines += [
            f"| {title}{percent} by {axis} | {' | '.join(map(str, places))} |",
            "|---|" + "---:|" * len(places),
        ]
        for method in result["methods"]:
            cells = [cell(points[place][method], unit) for place in places]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/results.md."""
    intro = [
        "# Results",
        "",
        "Generated by `benchmarks/evaluations.py` from `results/evaluations/*.json`; the verdicts "
        "are computed from",
        "the numbers. At this scale (two small ConvNets as teachers, few steps, few images) a "
        "verdict is about this",
        "setting: it neither confirms nor refutes the paper's tables, which are of larger networks "
        "and budgets.",
        "",
        "A claim *holds* if the 95 % interval of the difference, paired by distillation seed "
        "(Student's t), lies above",
        "zero, *does not hold* if it lies below, and is *not decided* otherwise: few seeds decide "
        "little.",
        "± is over distillation seeds. All seeds share one committee; no interval covers its "
        "choice. Time was taken",
        "on a machine that may have been busy. [What each evaluation measures](evaluation.md).",
        "",
    ]
    sections = [line for result in results.values() for line in section(result)]
    return "\n".join([*intro, *sections]).rstrip("\n") + "\n"


def plan(names: Sequence[str], seeds: int, say: Callable[[str], None]) -> None:
    """Print what will be done and what it cost when it was last measured."""
    for name in names:
        one = EXPERIMENTS[name]
        rows = len(one.methods) + sum(len(values) - 1 for values in one.sweep.values())
        say(
            f"{name:<18} {rows} rows × {seeds} seeds, {', '.join(one.evaluations)}: "
            f"about {one.minutes * seeds / 3:.0f} minutes on one core"
        )


def main() -> None:
    """Do the experiments named on the command line; then write the page from all results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(EXPERIMENTS)}; all by default")
    parser.add_argument("--cifar100", default="cifar100", help="CIFAR-100: a name or a folder")
    parser.add_argument("--seeds", type=int, default=3, help="distillation seeds per method")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluations"), help="run folders")
    parser.add_argument("--smoke", action="store_true", help="everything in miniature, no page")
    parser.add_argument("--plan", action="store_true", help="only say what would be done")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    arguments = parser.parse_args()
    names = arguments.names or list(EXPERIMENTS)
    if arguments.plan:
        plan(names, arguments.seeds, print)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    show_progress()
    written: dict[str, Any] = {}
    for name in [] if arguments.page else names:
        experiment = smoke(EXPERIMENTS[name]) if arguments.smoke else EXPERIMENTS[name]
        if experiment.config.data == "cifar100":
            config = replace(experiment.config, data=arguments.cifar100)
            experiment = replace(experiment, config=config)
        written[name] = run(name, experiment, arguments.seeds, arguments.out)
        if not arguments.smoke:
            RESULTS.mkdir(parents=True, exist_ok=True)
            table = arguments.out / name / "tables" / "comparison.csv"
            (RESULTS / f"{name}.csv").write_bytes(table.read_bytes())
            text = json.dumps(written[name], indent=1, ensure_ascii=False, sort_keys=True) + "\n"
            (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    if arguments.smoke:
        print(page(written))
        return
    found = {path.stem: read_json(path) for path in RESULTS.glob("*.json")}
    PAGE.write_text(page({name: found[name] for name in EXPERIMENTS if name in found}), "utf-8")
    print(f"{PAGE.relative_to(ROOT)} written from {len(found)} results")


if __name__ == "__main__":
    main()
