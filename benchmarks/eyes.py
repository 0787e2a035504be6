"""Is it the teacher that looks? Retrieval in the features of a teacher that does nothing else.

    python benchmarks/factors.py imagenette-32px-weak-ipc1 imagenette-32px-ipc1 --groups long
    python benchmarks/eyes.py imagenette-32px-weak-ipc1 --eye imagenette-32px --seeds 10

The committee of a setting optimises and labels as always; the first teacher of another setting's
committee, of the same images, only looks: it sees the synthetic images and the real ones when an
anchor is retrieved. So what good teachers do for retrieval is parted into what their look does and
what their gradients and labels do. Written to results/eyes.json, one row per setting and eye.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from factors import BASELINE, ROOT, SETTINGS, committee, figures

from reta import models
from reta.bench.measure import commit
from reta.comparison import compare
from reta.config import Config
from reta.evaluation.uncertainty import paired_difference
from reta.models import Classifier
from reta.progress import show_progress
from reta.storage import RunFolder, read_json
from reta.synthesis.canvas import Canvas
from reta.synthesis.embedding import Embedding

RESULTS = ROOT / "results" / "eyes.json"
USUAL = "reta-drc"
OTHER = "reta-drc connection.embedding=last"  # of the teachers that look, of whom there is one


class OneLooks:
    """In the place of `Canvas.eyes`: a teacher of its own for what `OTHER` asks for."""

    def __init__(self, eye: Classifier) -> None:
        self.eye, self.usual = eye, Canvas.eyes

    def __get__(self, canvas: Canvas, _: type) -> Any:
        def eyes(kind: Embedding) -> list[Classifier]:
            return [self.eye] if kind == "last" else self.usual(canvas, kind)

        return eyes


def measure(name: str, config: Config, eye: str, seeds: int, out: Path) -> dict[str, Any]:
    """Return the accuracy of FADRM+, of the usual look and of the other one."""
    setting, other = SETTINGS[name], SETTINGS[f"{eye}-ipc1"]
    files = committee(other.committee, replace(other.config, data=config.data), out)
    looks = models.read(Path(files[0]))[0]
    Canvas.eyes = OneLooks(looks)  # type: ignore[assignment, method-assign]
    config = replace(config, teachers=committee(setting.committee, config, out))
    folder = out / f"{name}-looked-at-by-{eye}"
    result = compare(config, [BASELINE, USUAL, OTHER], folder, seeds=seeds, baseline=BASELINE)
    accuracy = {
        row: [figures(folder / one)["last"] for one in runs] for row, runs in result["runs"].items()
    }
    base = [[value] for value in accuracy[BASELINE]]
    differences = {}
    for row in (USUAL, OTHER):
        found = paired_difference([[value] for value in accuracy[row]], base)
        assert found
        differences[row] = [round(100 * v, 2) for v in (found.mean, found.t_low, found.t_high)]
    return {
        "setting": name,
        "eye": eye,
        "accuracy": accuracy,
        "differences": differences,
        "gained_back": round(differences[OTHER][0] - differences[USUAL][0], 2),
        "baseline": mean(accuracy[BASELINE]),
        "command": f"python benchmarks/eyes.py {name} --eye {eye} --seeds {seeds}",
        "hardware": RunFolder(folder / result["runs"][BASELINE][0]).manifest()["hardware"],
        "commit": commit(),
    }


def main() -> None:
    """Do one setting under one eye."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", choices=SETTINGS, metavar="NAME", help="a setting of factors.py")
    parser.add_argument("--eye", required=True, help="a setting at ipc 1 whose teacher looks")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", metavar="PATH", help="where the set lies")
    parser.add_argument("--out", type=Path, default=Path("runs/factors"), help="run folders")
    asked = parser.parse_args()
    if f"{asked.eye}-ipc1" not in SETTINGS:
        parser.error(f"no setting {asked.eye}-ipc1 in benchmarks/factors.py")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    show_progress()
    config = SETTINGS[asked.name].config
    config = replace(config, data=asked.data or config.data)
    row = measure(asked.name, config, asked.eye, asked.seeds, asked.out)
    rows = read_json(RESULTS)["rows"] if RESULTS.exists() else []
    rows = [one for one in rows if (one["setting"], one["eye"]) != (row["setting"], row["eye"])]
    text = json.dumps({"rows": [*rows, row]}, indent=1, ensure_ascii=False) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(f"{asked.name} looked at by {asked.eye}: {row['differences']}")


if __name__ == "__main__":
    main()
