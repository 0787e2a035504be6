"""Turn comparison folders into the tables of docs/reproduction.md, with paired intervals.

    reta compare digits --ipc 2 --seeds 5 --students 2 --methods … --out runs/digits-ipc2
    python benchmarks/claims.py runs/digits-ipc2

writes results/digits-ipc2.json (every value, with command, hardware, seeds and commit) and prints
the table. Methods share teachers, and runs of one seed share their student seeds, so differences
are paired by seed; their intervals are bootstrapped over seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

BASELINE = "fadrm+"
RESULTS = Path(__file__).parents[1] / "results"


def run_values(folder: Path) -> dict[str, Any]:
    """Return the figures of one run."""
    metrics = json.loads((folder / "metrics.json").read_text())
    geometry = json.loads((folder / "geometry.json").read_text())
    recovered = json.loads((folder / "units" / "recover-000.json").read_text())["facts"]
    connections = recovered["connections"]

    def over(name: str) -> float | None:
        return mean(row[name] for row in connections) if connections else None

    ratios = [row["gradient_ratio"] for row in recovered["steps"] if "gradient_ratio" in row]
    return {
        "accuracy": [student["last"] for student in metrics["students"]],
        "best": [student["best"] for student in metrics["students"]],
        "kappa": metrics["kappa_mean"],
        "distance": geometry["intra_class_distance"],
        "contraction_ratio": over("contraction_ratio"),
        "distinct_anchors": over("distinct_anchors"),
        "fit_gap": over("fit_gap"),
        "topology_gradient_ratio": float(np.median(ratios)) if ratios else None,
        "seconds_per_image": metrics["seconds_per_image"],
    }


def paired_interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean difference over seeds."""
    rng = np.random.default_rng(0)
    draws = rng.choice(differences, (10_000, len(differences))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def collect(folder: Path) -> dict[str, Any]:
    """Return all values of a comparison folder and where they come from."""
    comparison = json.loads((folder / "comparison.json").read_text())
    first = folder / next(iter(comparison["runs"].values()))[0]
    manifest = json.loads((first / "manifest.json").read_text())
    root = RESULTS.parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    teachers = {
        record["facts"]["architecture"]: record["facts"]["test_accuracy"]
        for record in (json.loads(path.read_text()) for path in folder.glob("units/teacher-*.json"))
    }
    return {
        "command": comparison["command"],
        "commit": commit,
        "hardware": manifest["hardware"],
        "data": comparison["data"],
        "ipc": manifest["ipc"],
        "teachers": teachers,
        "runs": {
            method: [run_values(folder / name) for name in names]
            for method, names in comparison["runs"].items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table of a result."""
    real = mean(run["distance"]["real"] for runs in result["runs"].values() for run in runs)
    lines = [
        f"| | accuracy, % | vs {BASELINE} [95 %] | κ | distance (real {real:.3f}) "
        "| contraction | distinct anchors | PTA gradient / main |",
        "|---|---|---|---|---|---|---|---|",
    ]
    baseline = [mean(run["accuracy"]) for run in result["runs"].get(BASELINE, [])]
    for method, runs in result["runs"].items():
        seeds = [mean(run["accuracy"]) for run in runs]
        spread = f" ± {100 * stdev(seeds):.1f}" if len(seeds) > 1 else ""
        difference = "–"
        if method != BASELINE and len(baseline) == len(seeds) > 1:
            pairs = [a - b for a, b in zip(seeds, baseline, strict=True)]
            low, high = paired_interval(pairs)
            difference = f"{100 * mean(pairs):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        cells = [
            f"{mean(run['kappa'] for run in runs):.3f}",
            f"{mean(run['distance']['synthetic'] for run in runs):.3f}",
            *(_average(runs, name) for name in ("contraction_ratio", "distinct_anchors")),
            _average(runs, "topology_gradient_ratio"),
        ]
        accuracy = f"{100 * mean(seeds):.1f}{spread}"
        lines.append(f"| {method} | {accuracy} | {difference} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _average(runs: list[dict[str, Any]], name: str) -> str:
    values = [run[name] for run in runs if run[name] is not None]
    return f"{mean(values):.2f}" if values else "–"


def main() -> None:
    """Write the JSON and print the table of each folder named on the command line."""
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        folder = Path(name)
        result = collect(folder)
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{folder.name}.json").write_text(text, encoding="utf-8")
        print(f"{folder.name}: {result['command']}\n\n{table(result)}\n")


if __name__ == "__main__":
    main()
