"""The plan: what it says of a run is what the run then does, and it says what does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import reta
from reta import cli
from reta.config import Config
from reta.pipeline import distill
from reta.planning import Plan, outline, plan
from reta.preparation import open_data
from reta.storage import RunFolder
from reta.students import train

TINY = Config(
    "digits",
    ipc=3,
    classes=3,
    per_class=30,
    block=2,
    teachers=("convnet3", "convnet4"),
    teacher_epochs=1,
    steps=8,
    label_epochs=60,
    student="convnet3",
    students=2,
)


def size_of(folder: Path, part: str) -> int:
    return sum(path.stat().st_size for path in (folder / part).rglob("*.*") if path.is_file())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_format": "float16", "label_keep": 0.5},
        {"label_format": "topk", "label_top": 2, "method": "random"},
        {"label_format": "online"},
    ],
    ids=["int8", "float16, half of them", "topk", "online"],
)
def test_units_and_bytes_are_those_of_the_run(changes: dict[str, object], tmp_path: Path) -> None:
    """A plan that counts other units, or other bytes, than the run then writes."""
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    made = outline(config, open_data(config), tmp_path / "run")
    folder = distill(config, tmp_path / "run")
    done = {name for name in RunFolder(folder).records() if name != "card"}
    assert made.units == len(done), sorted(done)
    headers = 4000  # names and shapes of the tensors of a few files
    for part in ("labels", "teachers", "pool"):
        assert made.bytes[part] == pytest.approx(size_of(folder, part), abs=headers, rel=0.01), part
    assert 0 < size_of(folder, "images") <= made.bytes["images"]
    if not changes:
        train(folder)
        size = size_of(folder, "students")
        assert made.bytes["students"] == pytest.approx(size, abs=headers, rel=0.01)


@pytest.fixture(scope="module")
def timed() -> Plan:
    return plan(TINY, "runs/none")


def test_it_can_be_asked_for_from_python() -> None:
    """A plan that only the command line can make."""
    settings = {"classes": 2, "per_class": 20, "teachers": ["convnet3"], "ipc": 2, "steps": 4}
    assert reta.plan("digits", **settings).units == 9
    assert "plan" in reta.__all__


def test_every_stage_is_timed_and_nothing_is_written(timed: Plan) -> None:
    """A stage that costs nothing in the plan and hours in the run."""
    times = {stage.name: stage.seconds for stage in timed.stages}
    assert times.pop("begin") == 0
    assert all(value is not None and value > 0 for value in times.values()), times
    assert timed.seconds == pytest.approx(sum(value or 0 for value in times.values()))
    assert (timed.memory or 0) > timed.bytes["images"]
    assert not Path("runs/none").exists()
    assert timed.problems == []


class Ticks:
    """A clock by which every pass takes as long: a thousandth of a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def test_so_many_times_the_work_is_so_many_times_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate that leaves out epochs, steps or students.

    Passes are done, but timed by a clock that does not know what else the machine has to do.
    """
    monkeypatch.setattr("time.perf_counter", Ticks())
    source = open_data(TINY)
    more = replace(TINY, label_epochs=600, steps=800, teacher_epochs=50, students=20)
    one, many = plan(TINY, "a", source=source), plan(more, "a", source=source)
    for stage, factor in (("squeeze", 50), ("recover", 100), ("relabel", 10), ("students", 100)):
        seconds = [
            next(s.seconds or 0 for s in made.stages if s.name == stage) for made in (one, many)
        ]
        assert seconds[1] / seconds[0] == pytest.approx(factor, rel=0.1), stage


def test_what_does_not_fit_names_the_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that fills the disk after a day, when its size was known before."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("reta.planning._memory_limit", lambda place: 1000)
    config = replace(TINY, label_epochs=100_000)
    disk, memory = plan(config, tmp_path / "run").problems
    assert disk.startswith("disk: ")
    assert "--label-format int4 or topk, --label-keep 0.1" in disk
    assert "--images-per-pass 50" in memory


def test_a_plan_of_the_papers_networks_needs_no_weights(tmp_path: Path) -> None:
    """Labels of ImageNet's size, or a committee's bytes, wrong by a factor."""
    config = replace(TINY, teachers=("resnet18", "swin_t"), image_size=32, ipc=50)
    made = outline(config, open_data(config), tmp_path / "run")
    assert made.bytes["teachers"] == pytest.approx(4 * (11.2e6 + 27.5e6), rel=0.02)
    assert made.bytes["pool"] == 90 * 4 * (512 + 1)


def test_the_command_prints_and_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A plan a script cannot read, or that leaves out what the issue of users asks for."""
    options = "--classes 2 --per-class 20 --teachers convnet3 --ipc 2 --steps 4 --label-epochs 2"
    cli.main(["plan", "digits", *options.split()])
    printed = capsys.readouterr().out
    for word in ("squeeze", "recover", "relabel", "time", "memory", "disk", "units", "labels"):
        assert word in printed
    cli.main(["plan", "digits", *options.split(), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["units"] == 6
    assert made["bytes"]["labels"] > 0
    assert made["seconds"] > 0


def test_distill_says_its_plan_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A long run that begins without a word of what it will take."""
    options = "--classes 2 --per-class 20 --teachers convnet3 --ipc 1 --steps 4 --label-epochs 2"
    out = tmp_path / "run"
    cli.main(["distill", "digits", *options.split(), "--out", str(out), "--teacher-epochs", "1"])
    printed = capsys.readouterr().out
    assert printed.index("plan ") < printed.index("disk ") < printed.index("distilled set")
