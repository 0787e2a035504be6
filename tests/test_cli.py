"""The command line: what it prints, what it refuses, and how it exits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reta import cli
from reta.methods import METHODS

ROOT = Path(__file__).parents[1]
SMALL = ["--classes", "3", "--per-class", "20", "--teachers", "convnet3", "--teacher-epochs", "1"]
SHORT = ["--steps", "5", "--label-epochs", "2", "--students", "1", "--ipc", "2"]


def run(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Run the command in a process of its own and return everything it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "reta", *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed
    return printed


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Return what runs a command in this process, seconds sooner, and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> str:
        cli.main(list(arguments))
        return capsys.readouterr().out

    return typed


def test_from_images_to_report(here, tmp_path):
    """Breaks when the sequence a newcomer follows has a gap."""
    printed = run("distill", "digits", "--out", "runs/a", *SMALL, *SHORT, cwd=tmp_path)
    assert "reta train runs/a" in printed
    assert "accuracy" in here("train", "runs/a")
    assert "κ" in here("evaluate", "runs/a")
    assert "intact" in here("verify", "runs/a")
    assert "report.html" in here("report", "runs/a")
    image = next(tmp_path.glob("runs/a/images/*/*.png"))
    image.write_bytes(image.read_bytes()[:-1])
    assert f"{image.parent.name}/{image.name}" in run("verify", "runs/a", cwd=tmp_path, code=3)


def test_compare_prints_a_row_per_method(here, tmp_path):
    """Breaks when a method is missing from the table, or an option reaches no method."""
    methods = ["--methods", "random", "reta"]
    options = ["--set", "topology.weight=0.1"]
    printed = here("compare", "digits", "--out", "c", *SMALL, *SHORT, *methods, *options)
    assert "random" in printed
    assert "reta" in printed
    config = (tmp_path / "c/reta/config.yaml").read_text()
    assert "topology.weight: 0.1" in config
    assert "topology" not in (tmp_path / "c/random/config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["distill", "digitz"], 2, "did you mean 'digits'"),
        (["distill", "./photos"], 2, "photos: no such file or folder"),
        (["distill", "digits", "--method", "retta"], 2, "did you mean 'reta'"),
        (["distill", "digits", "--set", "connection.tradeoff=1"], 2, "did you mean 'trade_off'"),
        (["distill", "digits", "--set", "connection.trade_off"], 2, "PART.FIELD=VALUE"),
        (["distill", "digits", "--teachers", "resnet19"], 2, "did you mean 'resnet18'"),
        (["distill", "digits", "--ipc", "0"], 2, "ipc is 0"),
        (["distill", "digits", "--effort", "huge"], 2, "huge"),
        (["compare", "digits", "--methods", "random", "--set", "topology.weight=1"], 2, "none of"),
        (["compare", "digits", "--methods", "reta topology.wieght=1"], 2, "did you mean 'weight'"),
        (["train", "nowhere"], 3, "no such folder"),
        (["verify", "nowhere"], 3, "no such folder"),
        (["unlock", "nowhere"], 3, "no such folder"),
        (["report", "nowhere"], 3, "nowhere"),
        (["methods", "retta"], 2, "did you mean 'reta'"),
        (["distill", "./[/x]"], 2, "./[/x]: no such file"),
        (["distill", "digits", "--teachers", "convnet3", "convnet3"], 2, "each only once"),
        (["distill", "digits", "--set", "schedule.betas=0.5"], 2, "schedule.betas is 0.5"),
        (["distill", "digits", "--set", "connection=5"], 2, "connection is a part"),
        (["compare", "digits", "--seeds", "0"], 2, "seeds is 0"),
    ],
)
def test_mistakes_get_one_clear_message(arguments, code, message, tmp_path, monkeypatch, capsys):
    """Breaks when a mistake ends in a traceback, a wrong exit code or a half-made folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == code
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())
    assert not list(tmp_path.rglob("*.*"))


def test_methods_lists_them_all(capsys):
    """Breaks when a method exists that the list does not show."""
    cli.main(["methods"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS)
    cli.main(["methods", "reta"])
    assert "trade_off: 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_teaches(command, capsys):
    """Breaks when a command has no help, or an option has no explanation."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 300


def test_the_example_method_runs(tmp_path):
    """Breaks when a method of one's own needs more than the example shows."""
    example = ROOT / "examples" / "new_method.py"
    assert len(example.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(example), str(tmp_path / "run")],
        text=True,
        capture_output=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "confident" in done.stdout


def test_a_signal_stops_the_command_and_the_same_command_continues(here, tmp_path):
    """Breaks when SIGTERM ends in a traceback, another exit code, or lost work."""
    command = [sys.executable, "-m", "reta", "distill", "digits", "--out", "run", *SMALL]
    command += ["--ipc", "2", "--steps", "20", "--label-epochs", "200", "--students", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=environment)
    images = tmp_path / "run" / "units" / "recover-000.json"
    while process.poll() is None and not images.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 143, printed.decode()
    assert b"the same command continues" in printed
    assert b"Traceback" not in printed
    here(*command[3:])
    assert "intact" in here("verify", "run")
