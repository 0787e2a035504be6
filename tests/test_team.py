"""Several processes that train one teacher: the step of one process with the whole batch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from reta import cli
from reta.models import Classifier, build
from reta.storage import RunFolder
from reta.team import Team, assembled, here
from reta.training import Protocol, train_teacher
from small_world import make_images

ROOT = Path(__file__).parents[1]


def learn(path: Path) -> None:
    """Train a teacher in double precision and keep it; the body of every process."""
    images = make_images(3, 11, 16)  # 33 images in batches of 16: the last has one
    model = build("convnet3", 3, 16, mean=(0.5,) * 3, std=(0.2,) * 3, seed=0).double()
    doubles(model)
    with assembled("cpu") as team:
        train_teacher(model, images, images, Protocol(2), flip=True, seed=0, batch_size=15)
        path = path.with_suffix(f".{team.rank}-of-{team.size}")
    safetensors.torch.save_file(model.state_dict(), path)


def doubles(model: Classifier) -> None:
    """Let a model take images in single precision."""
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))


def start(code: str, *arguments: str, folder: Path, processes: int = 2) -> str:
    """Run code under torchrun and return what it printed."""
    script = folder / "script.py"
    script.write_text(code)
    options = ["--standalone", f"--nproc-per-node={processes}"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(script), *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_learn_what_one_does(tmp_path):
    """Breaks when a statistic, a gradient or a weight of the loss is a share's and not the batch's.

    In double precision, where rounding cannot hide it. Batches of 15 images have uneven shares.
    """
    learn(tmp_path / "alone")
    code = "import sys, pathlib, test_team; test_team.learn(pathlib.Path(sys.argv[1]))"
    start(code, str(tmp_path / "together"), folder=tmp_path)
    alone = safetensors.torch.load_file(tmp_path / "alone.0-of-1")
    first, second = (
        safetensors.torch.load_file(tmp_path / f"together.{rank}-of-2") for rank in (0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = build("convnet3", 3, 16, mean=(0.5,) * 3, std=(0.2,) * 3).double().eval()
    views = make_images(3, 11, 16, seed=1).images.double() / 255
    answers = []
    for weights in (alone, first):
        model.load_state_dict(weights)
        answers.append(model(views).detach())
    assert answers[0].std() > 0.02
    assert torch.allclose(*answers, atol=1e-6)


def test_alone_nothing_is_added_up():
    """Breaks when a process without torchrun waits for others, or shares its batch."""
    assert here() == Team(0, 1)
    value = torch.arange(3)
    assert here().share(value) is not None
    assert torch.equal(here().share(value), value)
    assert here().total(value) is value
    assert here().told("word") == "word"


@pytest.mark.slow
def test_the_command_leaves_teachers_that_distil_takes_over(tmp_path, monkeypatch):
    """Breaks when two processes write one folder, or distil trains the teachers again."""
    monkeypatch.chdir(tmp_path)
    settings = shlex.split(
        "digits --classes 2 --per-class 20 --ipc 1 --teachers convnet3 --teacher-epochs 2 "
        "--steps 4 --label-epochs 2 --students 1 --out run"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    code = "import sys; from reta.cli import main; main(sys.argv[1:])"
    os.chdir(tmp_path)
    printed = start(code, "squeeze", *settings, "--device", "cpu", folder=tmp_path)
    assert printed.count("teachers ") == 1
    record = (tmp_path / "run/units/teacher-convnet3.json").read_bytes()
    cli.main(["distill", *settings])
    assert (tmp_path / "run/units/teacher-convnet3.json").read_bytes() == record
    assert RunFolder(tmp_path / "run").verify() == []
