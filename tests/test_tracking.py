"""Tracking: the numbers that arrive are those the run folder keeps, and nothing changes them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import reta
from reta import tracking
from reta.errors import UsageError
from reta.storage import read_json

SMALL = {
    "effort": "smoke",
    "classes": 3,
    "per_class": 20,
    "ipc": 2,
    "steps": 8,
    "teachers": ("convnet3",),
    "teacher_epochs": 2,
    "label_epochs": 2,
}


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    tracker = Kept(Path())
    monkeypatch.setitem(tracking.TRACKERS, "kept", lambda folder: tracker)
    return tracker


def test_tensorboard_reads_back_what_the_run_keeps(tmp_path: Path) -> None:
    """Breaks when a curve in TensorBoard is not the one in the run folder and its report."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    with tracking.tracking("tensorboard", tmp_path / "run"):
        run = reta.distill("digits", tmp_path / "run", **SMALL)  # type: ignore[arg-type]
        reta.train(run, students=1)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    (recovery,) = (read_json(path)["facts"] for path in (run / "units").glob("recover-*.json"))
    (losses,) = (scalars[tag] for tag in scalars if tag.endswith("/convnet3/loss"))
    assert [event.step for event in losses] == [row["step"] for row in recovery["steps"]]
    assert [event.value for event in losses] == pytest.approx(
        [row["loss"] for row in recovery["steps"]]
    )
    (gaps,) = (scalars[tag] for tag in scalars if tag.endswith("/connection/fit_gap"))
    assert len(gaps) == len(recovery["connections"]) > 0
    (student,) = read_json(run / "metrics.json")["students"]
    (accuracy,) = (
        scalars[tag] for tag in scalars if "student" in tag and tag.endswith("/test_accuracy")
    )
    assert [[event.step, event.value] for event in accuracy] == [
        [epoch, pytest.approx(value)] for epoch, value in student["curve"]
    ]


def test_tracking_changes_no_byte(tmp_path: Path, kept: Kept) -> None:
    """Breaks when looking at a run draws a random number or costs a step."""
    plain = reta.distill("digits", tmp_path / "plain", **SMALL)  # type: ignore[arg-type]
    assert kept.rows == []
    with tracking.tracking("kept", tmp_path / "tracked"):
        tracked = reta.distill("digits", tmp_path / "tracked", **SMALL)  # type: ignore[arg-type]
    assert kept.closed
    assert kept.rows
    for path in (plain / "images").rglob("*.png"):
        assert (tracked / path.relative_to(plain)).read_bytes() == path.read_bytes()


def test_it_ends_with_the_work(kept: Kept, tmp_path: Path) -> None:
    """Breaks when a failed run leaves its tracker open, or later runs report to it."""

    def fail() -> None:
        with tracking.tracking("kept", tmp_path / "run"):
            tracking.note(1, {"loss": 0.5})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert kept.closed
    tracking.note(2, {"loss": 0.4})
    assert kept.rows == [(1, {"run/loss": 0.5})]


def test_units_have_names_of_their_own(kept: Kept, tmp_path: Path) -> None:
    """Breaks when the curves of two units fall together into one zigzag."""
    with tracking.tracking("kept", tmp_path / "run"):
        for name in ("recover a/b, 0 to 9", "recover a/b, 10 to 19"):
            with tracking.unit(name):
                tracking.note(0, {"loss": 1.0}, "resnet18")
    names = [name for _, row in kept.rows for name in row]
    assert names == ["recover a-b, 0 to 9/resnet18/loss", "recover a-b, 10 to 19/resnet18/loss"]


def test_what_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when --track wandb without W&B ends in a traceback."""
    for kind in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, kind, None)
        expected = rf"pip install 'reta\[{kind}\]'"
        with pytest.raises(UsageError, match=expected), tracking.tracking(kind, tmp_path / "run"):
            pass
    with pytest.raises(UsageError, match="did you mean 'wandb'"), tracking.tracking("wandbb", "x"):
        pass


_TALK = """
import sys
from pathlib import Path
from reta import tracking
with tracking.tracking(sys.argv[1], Path(sys.argv[2]) / "run"):
    for name in ("recover run, 0 to 1", "student run, 0"):
        with tracking.unit(name):
            for step in (1, 2):
                tracking.note(step, {"loss": 1.0 / step})
"""


@pytest.mark.slow
def test_wandb_takes_the_numbers_offline(tmp_path: Path) -> None:
    """Breaks when W&B refuses names, or steps that begin anew with each unit."""
    pytest.importorskip("wandb")
    talk(tmp_path, "wandb", {"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_trackio_takes_the_numbers(tmp_path: Path) -> None:
    """Breaks when trackio refuses names or steps."""
    pytest.importorskip("trackio")
    talk(tmp_path, "trackio", {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"})
    assert [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]


def talk(folder: Path, kind: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TALK, kind, str(folder)],
        env={**os.environ, "HOME": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
