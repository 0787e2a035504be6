"""BatchNorm over groups of one pass, against a pass of each group in train mode, in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from reta.errors import UsageError
from reta.models import Classifier, batch_statistics, build, can_group, wrap
from reta.runtime import (
    choose_device,
    full_precision,
    half_precision,
    mixed_precision,
    recovery_precision,
    short_numbers,
    teacher_precision,
)
from reta.training import Protocol, fit, soft_loss

CPU = torch.device("cpu")


@dataclass
class Passes:
    """A copy of a model after passes over groups of images, and what came out."""

    model: Classifier
    logits: torch.Tensor
    gradients: list[torch.Tensor | None]


def passes(model: Classifier, images: torch.Tensor, group: int, folded: bool | None) -> Passes:
    """Run a copy over groups of images: together, or (``folded`` None) one after another."""
    own = copy.deepcopy(model).train()
    if folded is None:
        logits = torch.cat([own(part) for part in images.split(group)])
    else:
        with batch_statistics(own, group, running=True, folded=folded):
            logits = own(images)
    (logits * torch.arange(logits.numel()).view_as(logits)).sum().backward()
    return Passes(own, logits.detach(), [value.grad for value in own.parameters()])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("name", "groups"), [("convnet3", 3), ("resnet18", 2), ("shufflenet_v2_x0_5", 2)]
)
def test_groups_of_one_pass_are_passes_of_their_own(name: str, groups: int, folded: bool) -> None:
    """Statistics over the whole batch; running values moved once, or by the wrong share."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4 * groups, 3, 16, 16, generator=generator, dtype=torch.float64)
    model = build(name, 5, 16, seed=1).double()
    apart = passes(model, images, 4, None)
    together = passes(model, images, 4, folded)
    torch.testing.assert_close(together.logits, apart.logits, rtol=1e-8, atol=1e-8)
    for own, other in zip(together.gradients, apart.gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-7)
    for own, other in zip(together.model.buffers(), apart.model.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_a_norm_that_cannot_be_grouped_is_found() -> None:
    """Statistics over both halves of a batch, in a layer that nobody looked at."""
    assert can_group(build("densenet121", 3, 16))
    own = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert not can_group(wrap(own, 3, 4))
    cumulative = build("convnet3", 3, 16)
    for layer in cumulative.batch_norms():
        layer.momentum = None
    assert not can_group(cumulative)


@pytest.mark.parametrize("name", ["convnet3", "resnet18"])
def test_a_step_of_two_halves_is_the_step_of_both(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves that share a pass must train as halves that do not: float64, three steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 16, 16, generator=generator, dtype=torch.float64)
    targets = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    batch = list(zip(images.split(8), targets.split(8), strict=True))
    states = []
    for grouped in (True, False):
        monkeypatch.setattr("reta.training.loop.can_group", lambda _, grouped=grouped: grouped)
        model = build(name, 5, 16, seed=1).double()
        fit(model, lambda _: [batch] * 3, soft_loss(20.0), Protocol(1), lambda _: None, name)
        states.append(
            torch.cat([value.flatten().double() for value in model.state_dict().values()])
        )
    torch.testing.assert_close(*states, rtol=1e-6, atol=1e-8)


def test_full_precision_is_full() -> None:
    """A run that was asked for float32, or begins anew after diverging, with short numbers."""
    with full_precision():
        assert mixed_precision(CPU)[0] is half_precision(CPU)[0] is None
        assert not torch.backends.cudnn.allow_tf32


def test_the_environment_asks_for_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """RETA_PRECISION that is not looked at, or misspelt and not looked at."""
    monkeypatch.setenv("RETA_PRECISION", "full")
    assert mixed_precision(CPU)[0] is half_precision(CPU)[0] is None
    monkeypatch.setenv("RETA_PRECISION", "short")
    with pytest.raises(UsageError, match="full, half or empty"):
        choose_device("cpu")


def test_teachers_and_recovery_are_short_only_if_asked() -> None:
    """Teachers or pixels in 16 bits, unshown to be as good, because a CPU happens to have them."""
    assert teacher_precision(CPU)[0] is recovery_precision(CPU) is None
    with short_numbers():
        assert teacher_precision(CPU) == mixed_precision(CPU)
        assert recovery_precision(CPU) is half_precision(CPU)[0]
