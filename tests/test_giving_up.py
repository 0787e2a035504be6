"""Units that are given up, from the command line: the others go on, and the exit code says why."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import reta
from reta import cli
from reta.config import Config
from reta.errors import UnfinishedError, UsageError
from reta.executor import Serial
from reta.storage import RunFolder, read_json

TINY = shlex.split(
    "distill digits --classes 3 --per-class 20 --block 1 --ipc 2 --steps 4 --teachers convnet3 "
    "--teacher-epochs 1 --label-epochs 2 --students 1 --out run"
)


@dataclass
class Losing(Serial):
    """Gives up the units of which the words are in its name, as if their workers had died."""

    doomed: str

    def __post_init__(self) -> None:
        super().__init__()

    def run(
        self, stage: str, work: Callable[..., None], shared: Any, units: Sequence[Any]
    ) -> list[Any]:
        lost = [unit for unit in units if self.doomed in f"{stage} {unit}"]
        for unit in lost:
            self.failures[f"{stage} {unit}"] = UnfinishedError("its worker died 4 times")
        return lost + super().run(stage, work, shared, [u for u in units if u not in lost])


def typed(arguments: Sequence[str]) -> int:
    """Return the exit code of a command."""
    try:
        cli.main(list(arguments))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def blocks(folder: Path) -> set[str]:
    return {name for name in RunFolder(folder).records() if name.startswith("recover-")}


def test_a_lost_unit_ends_with_6_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when one deadly unit costs the others, or scripts cannot tell that it is missing."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("reta.cluster.executor_of", lambda _: Losing("recover run, 1 to 1"))
        assert typed(TINY) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "recover run, 1 to 1: its worker died 4 times" in said
    assert "the same command tries again" in said
    assert blocks(tmp_path / "run") == {"recover-000", "recover-002"}
    assert typed(TINY) == 0
    assert typed(["verify", "run"]) == 0


def test_divergence_ends_with_4_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when NaN goes into images, is tried for ever, or stops what has nothing to do with it.

    The weight is infinite in float32, so every block of one method diverges, at any learning rate.
    """
    monkeypatch.chdir(tmp_path)
    infinite = "reta objective.bn_weight=1e39"
    out = ["--out", "c", "--methods", infinite, "random"]
    assert typed(["compare", *TINY[1:-2], *out]) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "3 units of work given up" in said
    assert "diverged 4 times" in said
    assert len(blocks(tmp_path / "c/random")) == 3
    assert (tmp_path / "c/random/metrics.json").is_file()
    (lost,) = (tmp_path / "c").glob("reta*")
    assert blocks(lost) == set()
    assert not list(lost.glob("images/**/*.png"))


def test_force_begins_another_folder_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when --force mixes two runs in one folder, or a command does not know it."""
    monkeypatch.chdir(tmp_path)
    compare = ["compare", *TINY[1:-2], "--methods", "random"]
    squeeze = ["squeeze", *TINY[1:-2]]
    for command, what in ((compare, "teacher-convnet3"), (squeeze, "teacher-convnet3")):
        name = command[0]
        assert typed([*command, "--out", name]) == 0
        before = {path: path.read_bytes() for path in Path(name).rglob("*") if path.is_file()}
        other = [*command, "--seed", "1", "--out", name]
        assert typed(other) == 2
        assert "begun with seed = 0, not 1" in " ".join(capsys.readouterr().err.split())
        assert typed([*other, "--force"]) == 0
        assert what in RunFolder(f"{name}-2").records()
        assert all(path.read_bytes() == content for path, content in before.items())
    # The settings of a run inside count as well.
    other = [*compare[:-1], "random", "fadrm+", "--set", "connection.alpha=0.9", "--out", "compare"]
    assert typed(other) == 0
    other[other.index("connection.alpha=0.9")] = "connection.alpha=0.8"
    assert typed(other) == 2
    assert typed([*other, "--force"]) == 0
    assert Path("compare-3/comparison.json").is_file()


SETTINGS: dict[str, Any] = {
    "classes": 2,
    "per_class": 12,
    "ipc": 2,
    "steps": 4,
    "teachers": ("convnet3",),
    "teacher_epochs": 1,
    "label_epochs": 1,
    "student": "convnet3",
    "students": 1,
}


def images(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("images/**/*.png")}


def test_force_begins_another_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when `reta demo --force` mixes two demos, or does not find its way back."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        config = Config("digits", **SETTINGS, seed=seed)
        monkeypatch.setattr("reta.cli.measuring.preset", lambda name, config=config: config)
        if seed == 0:
            assert typed(["demo", "--out", "demo"]) == 0
            before = images(Path("demo"))
            continue
        assert typed(["demo", "--out", "demo"]) == 2
        assert typed(["demo", "--out", "demo", "--force"]) == 0
        names = {row["method"] for row in read_json(Path("demo-2/comparison.json"))["rows"]}
        assert names == {"random", "fadrm+", "reta"}
        again = images(Path("demo-2"))
        assert typed(["demo", "--out", "demo", "--force"]) == 0
        assert images(Path("demo-2")) == again
        assert not Path("demo-3").exists()
    assert images(Path("demo")) == before


def test_force_begins_another_folder_from_python(tmp_path: Path) -> None:
    """Breaks when the functions ignore force, or return the folder that was refused."""
    out = tmp_path / "run"
    assert reta.distill("digits", out, **SETTINGS) == out
    before = images(out)
    with pytest.raises(UsageError, match="begun with seed = 0, not 1"):
        reta.distill("digits", out, **SETTINGS, seed=1)
    assert reta.distill("digits", out, force=True, **SETTINGS, seed=1) == tmp_path / "run-2"
    assert reta.distill("digits", out, force=True, **SETTINGS) == out
    assert images(out) == before
    both = tmp_path / "both"
    reta.compare("digits", ["random"], both, **SETTINGS)
    with pytest.raises(UsageError, match="begun with ipc = 2, not 1"):
        reta.compare("digits", ["random"], both, **(SETTINGS | {"ipc": 1}))
    result = reta.compare("digits", ["random"], both, force=True, **(SETTINGS | {"ipc": 1}))
    assert Path(result["folder"]) == tmp_path / "both-2"
