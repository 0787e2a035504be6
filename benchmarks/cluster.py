"""Does one driver keep up with a cluster, and what do lost workers cost? Needs no data, no GPU.

``python benchmarks/cluster.py`` measures the driver with real Ray workers and thousands of units
that do nothing, then simulates ImageNet-1K and ImageNet-21K on a hundred workers of which 5 % die
per hour, and writes results/cluster.json. What is measured and what is simulated is kept apart.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reta.cluster import RETRIES, OnRay
from reta.runtime import hardware

ROOT = Path(__file__).parents[1]


def nothing(shared: None, unit: int) -> None:
    """Do a unit that takes no time, so that only the driver and Ray are measured."""


def measure_driver(units: int, rounds: int) -> dict[str, Any]:
    """Return units per second and the driver's memory after each of several stages."""
    executor = OnRay()
    executor.run("warm up", nothing, None, range(100))
    rows = []
    for _ in range(rounds):
        start = time.perf_counter()
        executor.run("nothing", nothing, None, range(units))
        seconds = time.perf_counter() - start
        memory = _memory()
        rows.append({"seconds": seconds, "units_per_second": units / seconds, "rss": memory})
    grown = rows[-1]["rss"] - rows[0]["rss"]
    return {
        "units": units * rounds,
        "rounds": rows,
        "driver_bytes_per_unit": grown / (units * (rounds - 1)),
        "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _memory() -> int:
    """Return the memory of this process in bytes."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * resource.getpagesize()


@dataclass(frozen=True)
class Stage:
    """Units of one stage: how many, and the seconds each takes on one GPU."""

    name: str
    units: int
    seconds: float


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Attributes:
        per_hour: share of the workers that dies in an hour, at any time alike.
        back_after: seconds until another worker takes a dead one's place.
        lost: seconds of work that a death costs at most: the interval of the kept states where
            they lie on shared storage, everything where they do not.
    """

    per_hour: float = 0.05
    back_after: float = 300.0
    lost: float = float("inf")


def simulate(stages: list[Stage], workers: int, faults: Faults, seed: int = 0) -> dict[str, Any]:
    """Return how long the stages take, one after the other, on workers that die.

    Every unit is done by one worker; a death returns it to the queue, the fourth gives it up.
    """
    rng = random.Random(seed)
    rate = faults.per_hour / 3600
    clock, deaths, given_up, wasted, report = 0.0, 0, 0, 0.0, {}
    for stage in stages:
        began = clock
        # From when on it may be done, seconds left, deaths so far.
        todo = [(clock, stage.seconds, 0)] * stage.units
        free = [(clock, worker) for worker in range(workers)]
        heapq.heapify(free)
        ends = clock
        while todo:
            ready, left, died = heapq.heappop(todo)
            at, worker = heapq.heappop(free)
            at = max(at, ready)
            life = rng.expovariate(rate) if rate else float("inf")
            if life >= left:
                ends = max(ends, at + left)
                heapq.heappush(free, (at + left, worker))
                continue
            deaths += 1
            redone = min(life, faults.lost)
            wasted += redone
            heapq.heappush(free, (at + life + faults.back_after, worker))
            if died == RETRIES:
                given_up += 1
                ends = max(ends, at + life)
            else:
                heapq.heappush(todo, (at + life, left - life + redone, died + 1))
        clock = ends
        report[stage.name] = (clock - began) / 3600
    busy = sum(stage.units * stage.seconds for stage in stages)
    return {
        "hours": clock / 3600,
        "hours_by_stage": report,
        "hours_without_loss": busy / workers / 3600,
        "gpu_hours": busy / 3600,
        "deaths": deaths,
        "given_up": given_up,
        "gpu_hours_done_twice": wasted / 3600,
    }


# Not ours: 1.31 s per image is the paper's figure for RETA on one RTX 4090; 1,600 views a second
# is what FADRM's loop would give if 10 ms of launches per batch of 16 were its limit; students
# are left out, because nobody has published their time.
SECONDS_PER_IMAGE, VIEWS_PER_SECOND = 1.31, 1600.0


def plan(classes: int, ipc: int, epochs: int, block: int = 100) -> list[Stage]:
    """Return the stages of a run: blocks of classes, then shards of labels."""
    count = classes * ipc
    per_shard = max(1, min(50, 2**30 // (count * classes)))
    return [
        Stage("recover", -(-classes // block), block * ipc * SECONDS_PER_IMAGE),
        Stage("label", -(-epochs // per_shard), per_shard * count / VIEWS_PER_SECOND),
    ]


def scenarios() -> list[dict[str, Any]]:
    """Return the simulated cases: mean over seeds, with and without kept states."""
    rows = []
    for name, classes, ipc in (("ImageNet-1K", 1000, 50), ("ImageNet-21K", 21000, 10)):
        for workers in (1, 8, 100):
            for per_hour, lost in ((0.0, 0.0), (0.05, 30.0), (0.05, float("inf"))):
                stages = plan(classes, ipc, 300)
                runs = [
                    simulate(stages, workers, Faults(per_hour, 300.0, lost), seed)
                    for seed in range(20)
                ]
                mean = {
                    key: sum(run[key] for run in runs) / len(runs)
                    for key in runs[0]
                    if key != "hours_by_stage"
                }
                kept = "none" if not per_hour else "every 30 s" if lost < 1e9 else "not reached"
                case = {"set": name, "ipc": ipc, "workers": workers, "deaths_per_hour": per_hour}
                units = [asdict(stage) for stage in stages]
                rows.append(case | {"kept_states": kept, "stages": units} | mean)
    return rows


def main() -> None:
    """Measure, simulate and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=1000, help="units per round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cluster.json")
    options = parser.parse_args()
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "command": " ".join(["python", "benchmarks/cluster.py", *sys.argv[1:]]),
        "commit": commit,
        "hardware": hardware(),
        "measured": measure_driver(options.units, options.rounds),
        "simulated": {
            "assumed": {
                "seconds_per_image": SECONDS_PER_IMAGE,
                "views_per_second": VIEWS_PER_SECOND,
                "back_after_seconds": 300,
                "retries": RETRIES,
                "seeds": 20,
            },
            "rows": scenarios(),
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["measured"]["rounds"]:
        print(f"{row['units_per_second']:8.0f} units/s, driver {row['rss'] / 2**20:.0f} MiB")
    for row in result["simulated"]["rows"]:
        case = f"{row['set']} IPC {row['ipc']}, {row['workers']} workers"
        print(
            f"{case:<34} {100 * row['deaths_per_hour']:.0f} %/h, kept {row['kept_states']:<11} "
            f"{row['hours']:8.1f} h, {row['deaths']:5.1f} deaths, {row['given_up']:.2f} given up, "
            f"{row['gpu_hours_done_twice']:6.2f} GPU h twice"
        )


if __name__ == "__main__":
    main()
