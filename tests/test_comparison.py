"""Comparisons: rows, sweeps, differences, tables; and published numbers only where they fit."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

import reta
from reta.comparison import compare, summary
from reta.config import Config, from_yaml
from reta.errors import UsageError
from reta.evaluation.result import Figure, Result
from reta.reporting.published import published
from reta.reporting.tables import tables

TINY = Config(
    "digits",
    ipc=2,
    classes=2,
    per_class=12,
    teachers=("convnet3",),
    teacher_epochs=1,
    steps=8,
    label_epochs=2,
    student="convnet3",
    students=2,
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with a sweep and an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "c"
    result = compare(
        TINY,
        ["random", "reta"],
        folder,
        seeds=2,
        evaluations=["accuracy", "efficiency"],
        sweep={"connection.trade_off": [0.1, 0.9]},
    )
    return folder, result


def test_a_sweep_adds_a_row_per_value_that_is_not_the_methods_own(compared):
    """Breaks when the default is distilled twice, or a value is lost."""
    folder, result = compared
    assert result["methods"] == ["random", "reta", "reta connection.trade_off=0.9"]
    (sweep,) = result["sweeps"]
    assert [point["method"] for point in sweep["points"]] == [
        "reta",
        "reta connection.trade_off=0.9",
    ]
    own = (folder / "reta-connection.trade_off=0.9-1/config.yaml").read_text()
    assert "connection.trade_off: 0.9" in own
    assert reta.verify(folder) == []


def test_a_row_may_have_settings_of_its_own(tmp_path):
    """Settings of one row that reach another, or are lost; a word that is none."""
    row = "reta connection.anchors=distinct topology.weight=2"
    result = compare(
        replace(TINY, students=1, options={"topology.weight": 1.0}),
        ["reta-pta", row],
        tmp_path / "c",
        sweep={"topology.graph": ["union", "separate"]},
    )
    swept = [f"{one} topology.graph=separate" for one in ("reta-pta", row)]
    assert result["methods"] == ["reta-pta", row, *swept]
    configs = {
        label: from_yaml(tmp_path / "c" / runs[0] / "config.yaml")
        for label, runs in result["runs"].items()
    }
    assert configs["reta-pta"].options == {"topology.weight": 1.0}
    own = {"connection.anchors": "distinct", "topology.weight": 2}
    assert configs[row].options == own
    assert configs[row].method == "reta"
    assert configs[swept[1]].options == own | {"topology.graph": "separate"}
    with pytest.raises(UsageError, match="distinct: write it as"):
        compare(TINY, ["reta distinct"], tmp_path / "d")
    with pytest.raises(UsageError, match="weight"):
        compare(TINY, ["reta topology.wieght=2"], tmp_path / "d")


def test_what_is_written_is_what_is_returned(compared):
    """Breaks when comparison.json is not plain JSON, or a figure of a run is not its own."""
    folder, result = compared
    kept = json.loads((folder / "comparison.json").read_text())
    assert kept | {"folder": str(folder)} == json.loads(json.dumps(result))
    rows = result["evaluations"]["accuracy"]["figures"]["last"]["rows"]
    for label, row in rows.items():
        runs = [
            json.loads((folder / r / "metrics.json").read_text()) for r in result["runs"][label]
        ]
        assert row["values"] == [[one["last"] for one in run["students"]] for run in runs]
    assert rows["random"]["difference"] is None
    assert result["baseline"] == "random"


def test_tables_hold_every_figure(compared):
    """Breaks when a figure, a row or a difference is missing from the CSV, or a cell splits."""
    folder, result = compared
    lines = list(csv.DictReader(io.StringIO((folder / "tables/comparison.csv").read_text())))
    figures = sum(len(one["figures"]) for one in result["evaluations"].values())
    assert len(lines) == figures * len(result["methods"])
    line = next(line for line in lines if (line["figure"], line["method"]) == ("last", "reta"))
    row = result["evaluations"]["accuracy"]["figures"]["last"]["rows"]["reta"]
    assert float(line["mean"]) == row["mean"]
    assert float(line["difference_low"]) == row["difference"]["low"]
    markdown = (folder / "tables/comparison.md").read_text()
    for block in markdown.split("\n\n"):
        widths = {row.count("|") for row in block.splitlines() if row.startswith("|")}
        assert len(widths) <= 1, block
    latex = (folder / "tables/comparison.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3
    assert "trade\\_off" in latex


def test_a_second_evaluation_leaves_the_runs_as_they_are(compared):
    """Breaks when asking for one more measure distils or trains anything anew."""
    folder, result = compared
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/units/re*.json")}
    more = compare(
        TINY,
        ["random", "reta"],
        folder,
        seeds=2,
        evaluations=["diversity"],
        sweep={"connection.trade_off": [0.1, 0.9]},
    )
    assert set(more["evaluations"]) == {"accuracy", "diversity"}
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/units/re*.json")}
    assert more["rows"] == result["rows"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweep": {"connection.tradeoff": [1]}}, "did you mean 'trade_off'"),
        ({"sweep": {"topology.weight": [1]}}, "none of these methods has topology.weight"),
        ({"baseline": "herding"}, "unknown baseline"),
        ({"evaluations": ["corruption"]}, "did you mean 'corruptions'"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_work(tmp_path, options, message):
    """Breaks when a misspelt sweep or evaluation costs a teacher first."""
    with pytest.raises(UsageError, match=message):
        compare(TINY, ["random", "reta-drc"], tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def result_of(*values: float) -> dict:
    return Result({"x": Figure("x", list(values))}, {}, [f"note {len(values)}"]).json()


def test_summary_pairs_seeds_with_the_baseline():
    """Breaks when a method is held against another seed, or notes are repeated."""
    found = summary(
        {
            "a": [result_of(0.1, 0.3), result_of(0.5, 0.7)],
            "b": [result_of(0.2, 0.4), result_of(0.6, 0.8)],
        },
        "a",
    )
    row = found["figures"]["x"]["rows"]["b"]
    assert row["difference"]["mean"] == pytest.approx(0.1)
    assert row["difference"]["low"] == pytest.approx(0.1)
    assert found["notes"] == ["note 2"]


SETTING = {
    "data": "cifar100",
    "classes": 100,
    "image_size": 32,
    "ipc": 10,
    "student": "resnet18",
}


def test_published_numbers_need_the_same_setting():
    """Breaks when a paper's number stands beside another data set, size, ipc or student."""
    number = published("reta-paper", "accuracy", **SETTING)
    assert number["value"] == 0.703
    assert "Table 1" in number["source"]
    assert published("reta-paper", "accuracy", **SETTING | {"data": "CIFAR-100"}) == number
    others = {"data": "cifar10", "classes": 10, "image_size": 64, "ipc": 5, "student": "convnet3"}
    for name, value in others.items():
        assert published("reta-paper", "accuracy", **SETTING | {name: value}) is None
    assert published("reta-paper", "corrupted", **SETTING) is None
    assert published("random", "accuracy", **SETTING) is None


def test_a_published_number_is_a_column_of_its_own(compared):
    """Breaks when it is mixed with what was measured, or its source is not named."""
    _, result = compared
    paper = {"accuracy": {"reta": {"value": 0.703, "source": "RETA, Table 1"}}}
    text = tables(result | {"published": paper})["comparison.md"]
    assert "| published |" in text
    assert "70.3" in text
    assert "RETA, Table 1" in text
    assert "published" not in tables(result)["comparison.md"].lower()
