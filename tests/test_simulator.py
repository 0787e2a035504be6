"""The simulated cluster behind docs/cluster.md: against what can be worked out by hand."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("ray")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks/cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("units", "workers", "rounds"), [(10, 3, 4), (9, 3, 3), (2, 5, 1)])
def test_without_deaths_it_takes_whole_rounds(benchmark, units, workers, rounds):
    """Breaks when a worker waits, does two units at once, or a stage starts before the last."""
    stages = [benchmark.Stage("a", units, 3600.0), benchmark.Stage("b", workers, 1800.0)]
    result = benchmark.simulate(stages, workers, benchmark.Faults(0.0))
    assert result["hours"] == pytest.approx(rounds + 0.5)
    assert result["deaths"] == 0


def test_deaths_are_as_frequent_as_said(benchmark):
    """Breaks when the rate of deaths or the work they cost is miscounted."""
    faults = benchmark.Faults(0.05, 0.0, 0.0)  # nothing is lost: deaths are a Poisson process
    runs = [
        benchmark.simulate([benchmark.Stage("a", 100, 36000.0)], 10, faults, seed)
        for seed in range(40)
    ]
    deaths = sum(run["deaths"] for run in runs) / len(runs)
    assert deaths == pytest.approx(0.05 * 1000, abs=4 * (50 / 40) ** 0.5)
    assert all(run["gpu_hours_done_twice"] == 0 for run in runs)


def test_a_unit_is_given_up_after_the_fourth_death(benchmark):
    """Breaks when the simulated rule is not the one of the cluster."""
    faults = benchmark.Faults(1e6, 0.0)
    result = benchmark.simulate([benchmark.Stage("a", 5, 3600.0)], 2, faults)
    assert (result["deaths"], result["given_up"]) == (20, 5)


def test_the_page_says_what_was_simulated(benchmark):
    """Breaks when a number of docs/cluster.md is not the one in results/cluster.json."""
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "results/cluster.json").read_text(encoding="utf-8"))
    rows = result["simulated"]["rows"]
    for begin in range(0, len(rows), 3):
        hours = " | ".join(f"{row['hours']:.1f}" for row in rows[begin : begin + 3])
        assert f"{rows[begin]['workers']} | {hours} |" in page
    assert result["commit"] in page
    assert f"{result['measured']['units']:,} units" in page
