"""The benchmark in smoke size: it runs, its JSON says what it must, and nothing has become worse.

No absolute time is looked at, and times only as ratios of paths that took turns, with much slack.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from reta import bench
from reta.errors import UsageError
from reta.storage import json_bytes


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return json.loads(json_bytes(bench.run("cpu", smoke=True)))


def rows(result: dict[str, Any], id: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["id"] == id]


def test_every_part_is_measured(result: dict[str, Any]) -> None:
    """A row that is lost is a part that may become slow unseen."""
    ids = {row["id"] for row in result["rows"]}
    assert ids >= {"D1", "D2", "D3", "P1", "P2", "S1", "T1", "T2", "T3", "T4"}
    assert ids >= {f"R{number}" for number in range(1, 8)}
    assert result["machine"]["matmul_tflops"] > 0
    assert result["machine"]["copy_gb_per_second"] > 0
    for row in result["rows"]:
        assert row["value"] == row["value"]
        assert {"id", "metric", "value", "unit", "target", "met"} <= set(row)
        assert (row["met"] is None) == (row["target"] is None)


@pytest.mark.parametrize(
    ("id", "metric", "most"),
    [
        ("R3", "RETA", 1.5),  # 1.05 is the target
        ("R4", "RETA", 1.15),
        ("R6", "resnet18", 0.6),
        ("R7", "error", 1e-5),
        ("T4", "int8 labels: bytes", 1.01),
        ("T4", "int8 labels: information", 0.0002),
    ],
)
def test_ratios_with_slack(result: dict[str, Any], id: str, metric: str, most: float) -> None:
    """Breaks when a fast path is lost, keeps more, or is no longer right."""
    # Of times the lower quartile of the rounds: on a busy machine some rounds are disturbed.
    found = [(row["iqr"] or [row["value"]])[0] for row in rows(result, id)
             if metric in row["metric"]]  # fmt: skip
    assert found
    assert max(found) <= most


def test_the_table_shows_every_row(result: dict[str, Any]) -> None:
    """Breaks when the documents would leave out a target that is not met."""
    table = bench.table(result)
    for row in result["rows"]:
        assert row["metric"] in table
    assert table.count("**no**") == sum(row["met"] is False for row in result["rows"])


def test_there_are_two_suites() -> None:
    """A misspelt suite must not measure something else."""
    with pytest.raises(UsageError, match="cpu or gpu"):
        bench.run("tpu")
