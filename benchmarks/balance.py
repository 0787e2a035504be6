"""What decides an anchor: how much the two terms of Eq. 4 differ within a class.

    python benchmarks/balance.py cifar100-20-ipc1 imagenette-ipc1 --data imagenette=FOLDER …

looks at the sets that `benchmarks/factors.py` left in runs/factors under FADRM+, which retrieves
nothing, and asks of each synthetic image what retrieval would choose. For each setting, means over
images: the spread over a class of (1 − λ)·‖q − z‖² and of λ·c; how often the anchor is the one that
λ = 0 chooses; how many of the class fit better, and how many are simpler; how much worse the second
best is, which is what a margin is measured against. Written to results/balance.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import factors
import torch
import torch.nn.functional as F
from causes import world

from reta.bench.measure import commit
from reta.config import Config
from reta.data.distilled import load
from reta.data.images import ImageSet
from reta.preparation import open_data
from reta.synthesis.retrieval import edge_complexity, fit_complexity_score, scale_complexity

RESULTS = Path(__file__).parents[1] / "results"
TRADE_OFF = 0.1  # λ of the paper


def complexities(images: ImageSet) -> torch.Tensor:
    """Return c(o) of all real images ``(n,)``."""
    parts = torch.arange(len(images)).split(200)
    return torch.cat([edge_complexity(part.float() / 255) for part in images.batches(parts)])


def choice(query: torch.Tensor, keys: torch.Tensor, simple: torch.Tensor) -> dict[str, float]:
    """Return what decides the anchor of a query ``(d,)`` among ``(n, d)`` with c ``(n,)``."""
    fit = fit_complexity_score(query[None], keys, simple, 0.0)[0]
    score = fit_complexity_score(query[None], keys, simple, TRADE_OFF)[0]
    best = score.argmin()
    first, second = score.sort().values[:2]
    return {
        "spread_of_fit": (1 - TRADE_OFF) * float(fit.std()),
        "spread_of_complexity": TRADE_OFF * float(simple.std()),
        "as_without_complexity": float(best == fit.argmin()),
        "share_that_fits_better": float((fit < fit[best]).double().mean()),
        "share_that_is_simpler": float((simple < simple[best]).double().mean()),
        "gap_to_the_second": float(second - first),
        "gap_to_the_median": float(score.median() - first),
    }


def balance(name: str, config: Config, out: Path) -> dict[str, Any]:
    """Return the means over the images of a setting."""
    committee = out / "committees" / factors.SETTINGS[name].committee / "teachers"
    teachers = sorted(map(str, committee.glob("*.safetensors")))
    real = world(config, teachers)
    complexity = complexities(open_data(config).train)
    found = []
    folders = sorted((out / name).glob(f"{factors.BASELINE}-[0-9]*"))
    for folder in folders:
        data = load(folder, temperature=None)
        with torch.no_grad():
            queries = F.normalize(real.teachers[0].features(data.images.float() / 255), dim=1)
        for query, label in zip(queries.double(), data.labels, strict=True):
            simple = scale_complexity(complexity[real.pool.members(int(label))].double(), "minmax")
            found.append(choice(query, real.features(int(label)).double(), simple))
    means = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
    return {"setting": name, "sets": len(folders), "images": len(found)} | means


def main() -> None:
    """Do the settings named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="+", help="settings of benchmarks/factors.py")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/factors"), help="its run folders")
    asked = parser.parse_args()
    for name in asked.names:
        if not list((asked.out / name).glob(f"{factors.BASELINE}-[0-9]*")):
            parser.error(
                f"{asked.out / name} holds no sets; run benchmarks/factors.py {name} first"
            )
    places = dict(word.split("=", 1) for word in asked.data)
    rows = []
    for name in asked.names:
        config = factors.SETTINGS[name].config
        config = replace(config, data=places.get(config.data, config.data))
        rows.append(balance(name, config, asked.out))
        print(json.dumps(rows[-1]))
    result = {
        "rows": rows,
        "command": f"python benchmarks/balance.py {shlex.join(asked.names)}",
        "commit": commit(),
    }
    (RESULTS / "balance.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
