"""Turn comparison folders into the tables of docs/reproduction.md, with paired intervals.

    reta compare digits --ipc 2 --seeds 5 --students 2 --methods … --out runs/digits-ipc2
    python benchmarks/claims.py runs/digits-ipc2

writes results/digits-ipc2.json (every value, with command, hardware, seeds and commit) and fills
in the tables of the documents. Methods share teachers and student seeds, so differences are
paired by distillation seed; their intervals are Student's t over seeds, because a bootstrap of so
few values is too narrow. All seeds share one committee, so intervals do not cover its choice.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t

from reta.bench.measure import table as bench_table

BASELINE = "fadrm+"
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def commit() -> str:
    """Return the commit that is being measured."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def paired_interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean difference over seeds."""
    error = stdev(differences) / math.sqrt(len(differences))
    reach = float(t.ppf(0.975, len(differences) - 1)) * error
    return mean(differences) - reach, mean(differences) + reach


def collect(folder: Path) -> dict[str, Any]:
    """Return all values of a comparison folder and where they come from."""
    comparison = json.loads((folder / "comparison.json").read_text())
    first = folder / next(iter(comparison["runs"].values()))[0]
    manifest = json.loads((first / "manifest.json").read_text())
    teachers = {
        path.stem.removeprefix("teacher-"): json.loads(path.read_text())["facts"]["test_accuracy"]
        for path in sorted(folder.glob("units/teacher-*.json"))
    }
    return {
        # Where the data lay on this machine is nobody's business.
        "command": re.sub(r"(?<=\s)/\S*/", "", comparison["command"]),
        "commit": commit(),
        "hardware": manifest["hardware"],
        "data": comparison["data"],
        "ipc": manifest["ipc"],
        "teachers": teachers,
        "runs": {
            method: [run_values(folder / name) for name in comparison["runs"][method]]
            for method in comparison["methods"]
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table of a result: its own, or that of a comparison."""
    if "table" in result:
        rows = [result["table"]["head"], *result["table"]["rows"]]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
    real = mean(run["distance"]["real"] for runs in result["runs"].values() for run in runs)
    lines = [
        f"| | accuracy, % | best epoch, % | vs {BASELINE} [95 %] | κ | distance (real {real:.3f}) "
        "| contraction | distinct anchors | PTA gradient / main | s/image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    baseline = [mean(run["accuracy"]) for run in result["runs"].get(BASELINE, [])]
    for method, runs in result["runs"].items():
        seeds = [mean(run["accuracy"]) for run in runs]
        spread = stdev(seeds) if len(seeds) > 1 else stdev(runs[0]["accuracy"])
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
            _average(runs, "seconds_per_image"),
        ]
        best = f"{100 * mean(mean(run['best']) for run in runs):.1f}"
        accuracy = f"{100 * mean(seeds):.1f} ± {100 * spread:.1f}"
        lines.append(f"| {method} | {accuracy} | {best} | {difference} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _average(runs: list[dict[str, Any]], name: str) -> str:
    values = [run[name] for run in runs if run[name] is not None]
    return f"{mean(values):.2f}" if values else "–"


def filled(document: str) -> str:
    """Return a document with every ``<!-- table: NAME -->`` block made anew from results/."""

    def block(match: re.Match[str]) -> str:
        source_file = RESULTS / f"{match.group(1)}.json"
        if not source_file.exists():
            return match.group(0)  # not measured yet; the block says so
        result = json.loads(source_file.read_text(encoding="utf-8"))
        if "rows" in result:  # of `reta bench`
            return f"{match.group(0).splitlines()[0]}\n{bench_table(result)}\n<!-- end -->"
        facts = result["hardware"]
        taught = [
            f"{name} {100 * value:.1f} %" for name, value in result.get("teachers", {}).items()
        ]
        source = f"Teachers: {', '.join(taught)}. " if taught else ""
        source += (
            f"`{result['command']}`, commit {result['commit']}, {facts['cpu']}, "
            f"{facts['threads']} thread(s), torch {facts['torch']}"
        )
        return f"{match.group(0).splitlines()[0]}\n{table(result)}\n\n{source}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->.*?<!-- end -->", block, document, flags=re.DOTALL)


def main() -> None:
    """Keep the results of each folder named on the command line; then fill in the documents."""
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        folder = Path(name)
        text = json.dumps(collect(folder), indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{folder.name}.json").write_text(text, encoding="utf-8")
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
