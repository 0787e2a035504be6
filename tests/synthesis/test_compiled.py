"""The probe that torch compiles: the same numbers, and a clear word where there is no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reta.config import Config
from reta.methods import METHODS
from reta.models import Classifier
from reta.pipeline import distill
from reta.storage import RunFolder
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.matching import decoupled_objective
from reta.synthesis.pool import Pool
from reta.synthesis.probes import BatchNormProbe, Probe, probe
from reta.synthesis.schedule import Schedule
from small_world import CLASSES

pytestmark = pytest.mark.slow  # compiling takes half a minute
compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def gradient(asked: Probe, images: torch.Tensor) -> torch.Tensor:
    leaf = images.clone().requires_grad_()
    logits, gap = asked(leaf, 10.0)
    loss = decoupled_objective(logits, torch.arange(CLASSES), gap, 0.01).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    return found


@compiler
def test_its_numbers_are_those_of_the_plain_one(
    double_committee: list[Classifier], committee: list[Classifier]
) -> None:
    """Statistics of another layer or group, or those of the pass before; another group count."""
    compiled, exact = probe(committee[0], compiled=True), BatchNormProbe(double_committee[0])
    for groups in (3, 1, 3):
        images = torch.rand(groups, CLASSES, 3, 16, 16)
        found, expected = gradient(compiled, images), gradient(exact, images.double())
        assert (found.double() - expected).norm() <= 1e-5 * expected.norm()
        seen, plain = compiled.read(images), exact.read(images.double())
        for mean, wanted in zip(seen.means, plain.means, strict=True):
            torch.testing.assert_close(mean.double(), wanted, rtol=1e-4, atol=1e-5)
        for variance, wanted in zip(seen.variances, plain.variances, strict=True):
            torch.testing.assert_close(variance.double(), wanted, rtol=1e-4, atol=1e-5)


@compiler
def test_a_recovery_uses_it(committee: list[Classifier], pool: Pool) -> None:
    """A setting that changes nothing, or one that ends elsewhere: features, topology, anchors."""
    recipe = replace(METHODS["reta-paper"], schedule=Schedule(8, connections=1))
    made = [
        Recovery(recipe, committee[:1], pool, range(CLASSES), Settings(3, compiled=compiled))
        for compiled in (False, True)
    ]
    assert type(made[1].probes[0]) is not type(made[0].probes[0])
    plain, compiled = (one.run().images.float() for one in made)
    assert (plain - compiled).abs().mean() < 1  # of 255


@compiler
def test_it_is_part_of_what_the_images_depend_on(tmp_path: Path) -> None:
    """A run that goes on with the other numbers, and calls the images the same."""
    config = Config(
        "digits", ipc=1, classes=2, per_class=20, teachers=("convnet3",), teacher_epochs=1,
        steps=4, label_epochs=1, compiled=True,
    )  # fmt: skip
    inputs = [
        RunFolder(distill(one, tmp_path / str(index))).record("recover-000")["inputs"]
        for index, one in enumerate([config, replace(config, compiled=False)])
    ]
    assert inputs[0] != inputs[1]


def test_without_a_compiler_the_option_is_named(tmp_path: Path) -> None:
    """Forty lines of torch's own, for a machine without g++."""
    command = "distill digits --classes 2 --per-class 20 --ipc 1 --teachers convnet3 --compiled"
    command += " --teacher-epochs 1 --steps 4 --label-epochs 1 --out run"
    done = subprocess.run(
        [sys.executable, "-m", "reta", *command.split()],
        cwd=tmp_path,
        env={"PATH": "", "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "error: --compiled: torch cannot compile convnet3 here" in done.stderr
    assert "Traceback" not in done.stderr
