"""How much arithmetic a cell of the paper's table is: what a GPU must sustain to do it in time.

    python benchmarks/paper_cost.py --data cifar100=FOLDER imagenette=FOLDER

Counted, not timed, and so the same on any machine: a few steps of each network of a run are carried
out under PyTorch's counter of floating-point operations and multiplied as `reta plan` multiplies
their seconds. Of `reta-paper`, which computes the most; persistent homology is not in it. Teachers
are trained once per set and are listed by themselves, at most. Writes results/paper-cost.json, with
the rate that ends a cell within ten minutes; docs/reproduction.md quotes it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from factors import SETTINGS
from torch.utils.flop_counter import FlopCounterMode

from reta.bench.measure import commit
from reta.clock import Clock
from reta.config import Config, resolve
from reta.models import Classifier
from reta.parts import Job, class_blocks
from reta.preparation import open_data
from reta.runtime import choose_device, hardware

RESULTS = Path(__file__).parents[1] / "results" / "paper-cost.json"
LIMIT = 600.0  # seconds of a cell
_FEW = 8


class Counter(Clock):
    """Counts the floating-point operations of what a clock times; a multiply-add is two."""

    def _seconds(self, work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops())

    # Operations are as many as images, so a few images are enough and fit into any memory.

    def _training_step(self, model: Classifier, batch: int) -> float:
        few = min(batch, _FEW)
        return super()._training_step(model, few) * batch / few

    def _answer(self, model: Classifier, batch: int) -> float:
        return super()._answer(model, min(batch, _FEW))


def cost(config: Config) -> dict[str, float]:
    """Return the peta-operations of each stage of a cell."""
    source = open_data(config)
    config = replace(resolve(config, *source.shape), images_per_pass=len(source.classes))
    counter = Counter(config, source, choose_device("cpu"))
    counted = counter.seconds(class_blocks(Job(Path("unused"), config), source))
    return {stage: (operations or 0.0) / 1e15 for stage, operations in counted.items()}


def main() -> None:
    """Count all cells of the paper's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="paper settings of factors.py; all by default")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH")
    asked = parser.parse_args()
    places = dict(word.split("=", 1) for word in asked.data)
    paper = [name for name, one in SETTINGS.items() if one.role == "paper"]
    if unknown := set(asked.names) - set(paper):
        parser.error(
            f"no paper setting {', '.join(sorted(unknown))}; choose of: {', '.join(paper)}"
        )
    rows: list[dict[str, Any]] = []
    for name in asked.names or paper:
        config = replace(SETTINGS[name].config, method="reta-paper")
        config = replace(config, data=places.get(config.data, config.data))
        petaflop = cost(config)
        teachers = petaflop.pop("squeeze")
        cell = sum(petaflop.values())
        rows.append(
            {
                "setting": name,
                "teachers_petaflop": teachers,
                "petaflop": petaflop,
                "cell_petaflop": cell,
                "teraflops_for_ten_minutes": 1000 * cell / LIMIT,
            }
        )
        print(f"{name}: teachers {teachers:.1f}, cell {cell:.1f} PFLOP", flush=True)
        facts = {"command": "python benchmarks/paper_cost.py", "commit": commit()}
        result = {**facts, "hardware": hardware(), "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
