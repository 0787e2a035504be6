"""What a GPU does, tried without one: on torch's ``meta`` device tensors have shapes and no values.

Reading a value (``.item()``, ``.cpu()``, a mask) raises there. On a GPU it would make the program
wait until all work that was queued is done, at every step.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reta.committee import committee_logits
from reta.data.augment import random_views, render
from reta.methods import METHODS
from reta.models import Classifier, build, freeze
from reta.runtime import random_generator
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.matching import decoupled_objective
from reta.synthesis.pool import build_pool
from reta.synthesis.probes import probe
from reta.synthesis.schedule import Schedule
from reta.training import soft_loss
from reta.training.loop import _losses
from small_world import CLASSES, SIZE, make_images, make_teacher

NOWHERE = torch.device("meta")


def test_reading_a_value_is_noticed() -> None:
    """A device on which nothing below could fail."""
    value = torch.ones((), device=NOWHERE)
    for read in (torch.Tensor.item, torch.Tensor.cpu, bool):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            read(value)


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v2", "convnet3"]
)
def test_a_probe_reads_nothing_back(name: str) -> None:
    """A value that is looked at, or a mask, in any teacher's pass forward or backward."""
    teacher = freeze(build(name, 4, 32)).to(NOWHERE)
    leaf = torch.empty(3, 4, 3, 32, 32, device=NOWHERE, requires_grad=True)
    logits, gap = probe(teacher)(leaf, 10.0)
    labels = torch.empty(4, dtype=torch.int64, device=NOWHERE)
    (found,) = torch.autograd.grad(decoupled_objective(logits, labels, gap, 0.01).sum(), leaf)
    assert found.shape == leaf.shape


def test_a_recovery_step_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait in each step: in drawing views, in the packing, in the optimiser, in the clamp."""
    committee = [make_teacher(seed) for seed in (1, 2)]
    pool = build_pool(make_images(CLASSES, 6, SIZE), committee[0])
    recipe = replace(METHODS["fadrm+"], schedule=Schedule(4, connections=0))
    made = Recovery(recipe, committee, pool, range(CLASSES), Settings(3, images_per_pass=6))
    made.canvas.pixels, made.canvas.unit, made.targets = (
        value.to(NOWHERE) for value in (made.canvas.pixels, made.canvas.unit, made.targets)
    )
    for one in made.probes:
        one.teacher.to(NOWHERE)
        one.source.to(NOWHERE)
    made.canvas.packing._compares = False  # on a CPU alone
    monkeypatch.setattr(made, "_log", lambda step, row: None)  # a hundred times in a recovery
    assert recipe.schedule is not None
    made._optimise(recipe.schedule, recipe.schedule.blocks(made.canvas.image_size), lambda: None)
    assert made.step == 4
    assert made.canvas.pixels.device == NOWHERE


def _on(model: Classifier) -> Classifier:
    return model.to(NOWHERE)


def test_a_training_step_reads_nothing_back() -> None:
    """A wait in each step of a student: in its loss, or in statistics over its two halves."""
    model = _on(build("resnet18", 5, 32)).train()
    views, logits = (torch.empty(8, *shape, device=NOWHERE) for shape in ((3, 32, 32), (5,)))
    for value in _losses(model, [(views, logits)] * 2, soft_loss(20.0), None, True):
        value.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_labels_read_nothing_back() -> None:
    """A wait for each teacher in float32; in 16 bits one looks whether it left the range."""
    committee = [_on(freeze(build(name, 5, 32))) for name in ("convnet3", "resnet18")]
    found = committee_logits(committee, torch.empty(20, 3, 32, 32, device=NOWHERE), [8, 8, 4])
    assert found.shape == (20, 5)


def test_views_are_cut_without_a_look_at_the_images() -> None:
    """Shapes that depend on values, which would forbid recording the step as a CUDA graph."""
    views = random_views(random_generator(0, "views"), 4, 32, shift=4)
    assert render(torch.empty(4, 5, 3, 32, 32, device=NOWHERE), views, 32).device == NOWHERE
