"""Are strong teachers bad painters, or bad labellers? Images of one committee, labels of another.

    python benchmarks/relabelled.py cifar100-ipc1 --labels cifar100-ipc1-weak --data FOLDER

The images are those that `factors.py` made in a setting, as they lie in its run folders; another
setting's committee labels them, and students learn from that. What is measured goes to
results/relabelled.json.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from factors import ROOT, SETTINGS, committee
from PIL import Image

from reta import stages
from reta.bench.measure import commit
from reta.comparison import compare
from reta.config import Config
from reta.files import fingerprint
from reta.progress import show_progress
from reta.storage import RunFolder, read_json
from reta.synthesis.engine import Recovered
from reta.variants import Variant

RESULTS = ROOT / "results" / "relabelled.json"
PLAIN = "random"  # stands in for what made the images, since none are made


class Painted:
    """In the place of `recover`: gives the images of finished runs, seed by seed."""

    def __init__(self, folder: Path, row: Variant, seeds: int) -> None:
        self.folder, self.row, self.seeds = folder, row, seeds

    def __call__(self, *given: Any) -> Recovered:
        """Return the images of the classes asked for, of the run of the same seed."""
        _, _, _, labels, settings, *_ = given
        run = RunFolder(self.folder / self.row.run(settings.seed, self.seeds))
        folders = run.manifest()["folders"]
        images = torch.stack([_class(run.path / "images" / folders[label]) for label in labels])
        return Recovered(images, [images], [], [], [], 0.0, 1)


def _class(folder: Path) -> torch.Tensor:
    """Return the images ``(ipc, 3, s, s)`` of a class."""
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def accuracies(folder: Path, runs: Sequence[str]) -> list[float]:
    """Return the accuracy of each run, the mean over its students."""
    every = [read_json(folder / run / "metrics.json")["students"] for run in runs]
    return [mean(one["last"] for one in students) for students in every]


def measure(made: str, by: str, config: Config, row: str, seeds: int, out: Path) -> dict[str, Any]:
    """Return the accuracy of a row's images under their own labels and under others."""
    variant = Variant(row, config)
    own = [variant.run(seed, seeds) for seed in range(seeds)]
    stages.recover = Painted(out / made, variant, seeds)  # type: ignore[assignment]
    # Images made anew are others, though nothing that `compare` looks at has changed.
    mark = fingerprint([RunFolder(out / made / run).manifest()["files"] for run in own])[:8]
    folder = out / "relabelled" / f"{made}-{variant.run(0, 1)}-by-{by}-{mark}"
    result = compare(config, [PLAIN], folder, seeds=seeds, baseline=PLAIN)
    runs = result["runs"][PLAIN]
    return {
        "images": made,
        "labels": by,
        "row": row,
        "own": accuracies(out / made, own),
        "relabelled": accuracies(folder, runs),
        "command": f"python benchmarks/relabelled.py {made} --labels {by} --rows '{row}' "
        f"--seeds {seeds}",
        "hardware": RunFolder(folder / runs[0]).manifest()["hardware"],
        "commit": commit(),
    }


def main() -> None:
    """Do the rows asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("made", choices=SETTINGS, metavar="NAME", help="the setting of the images")
    parser.add_argument("--labels", choices=SETTINGS, metavar="NAME", required=True)
    parser.add_argument("--rows", nargs="+", default=["random", "fadrm+", "reta-drc"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", metavar="PATH", help="where the set lies")
    parser.add_argument("--out", type=Path, default=Path("runs/factors"), help="run folders")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    show_progress()
    setting, made = SETTINGS[asked.labels], SETTINGS[asked.made].config
    config = replace(setting.config, ipc=made.ipc)
    if replace(config, teacher_epochs=made.teacher_epochs) != made:
        parser.error(f"{asked.made} and {asked.labels} are not of the same images and students")
    config = replace(config, data=asked.data or config.data)
    config = replace(config, teachers=committee(setting.committee, config, asked.out))
    for row in asked.rows:
        last = asked.out / asked.made / Variant(row, config).run(asked.seeds - 1, asked.seeds)
        if not last.is_dir():
            parser.error(f"{last}: not there; make it with benchmarks/factors.py first")
        found = measure(asked.made, asked.labels, config, row, asked.seeds, asked.out)
        rows = read_json(RESULTS)["rows"] if RESULTS.exists() else []
        key = ("images", "labels", "row")
        rows = [one for one in rows if any(one[name] != found[name] for name in key)]
        text = json.dumps({"rows": [*rows, found]}, indent=1, ensure_ascii=False) + "\n"
        RESULTS.write_text(text, encoding="utf-8")
        own, other = (100 * mean(found[name]) for name in ("own", "relabelled"))
        print(f"{row} of {asked.made}: {own:.1f} %, labelled by {asked.labels}: {other:.1f} %")


if __name__ == "__main__":
    main()
