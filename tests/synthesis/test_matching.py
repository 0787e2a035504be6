"""Eq. 1: the BatchNorm gap against loops, groups against separate passes."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from reta.models import Classifier, freeze
from reta.synthesis.matching import Matching, decoupled_objective
from reta.synthesis.probes import BatchNormProbe, batchnorm_gap

MEAN, STD = (0.375, 0.5, 0.625), (0.25, 0.5, 0.25)  # exact in float32


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_layers() -> Classifier:
    """Two convolutions with a BatchNorm each, every number of them random, in float64."""
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3),
            bn1=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(4, 5, 3),
            bn2=nn.BatchNorm2d(5),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(5, 3),
        )
    )
    model = Classifier("two", network.double(), "head", 3, MEAN, STD).double()
    for index, tensor in enumerate([*model.parameters(), *model.buffers()]):
        if tensor.is_floating_point() and tensor.ndim and tensor.shape[:2] != (1, 3):
            tensor.data.copy_(0.1 + rand(*tensor.shape, seed=index))
    return freeze(model)


def convolve(images: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return np.stack(
        [
            np.stack(
                [
                    bias[o]
                    + sum(correlate2d(image[c], weight[o, c], "valid") for c in range(len(image)))
                    for o in range(len(weight))
                ]
            )
            for image in images
        ]
    )


def inputs_of_norms(model: Classifier, images: torch.Tensor) -> list[np.ndarray]:
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    trunk = model.trunk
    first = convolve((images.numpy() - mean) / std, trunk.conv1)
    layer = trunk.bn1
    normal = np.empty_like(first)
    for c in range(4):
        scale = layer.weight[c].item() / np.sqrt(layer.running_var[c].item() + layer.eps)
        normal[:, c] = (first[:, c] - layer.running_mean[c].item()) * scale + layer.bias[c].item()
    return [first, convolve(np.maximum(normal, 0), trunk.conv2)]


def gap_by_loops(activations: list[np.ndarray], model: Classifier, first_weight: float) -> float:
    gap = 0.0
    for index, (values, layer) in enumerate(zip(activations, model.batch_norms(), strict=True)):
        mean_square = var_square = 0.0
        for c in range(values.shape[1]):
            every = [float(v) for v in values[:, c].ravel()]
            mean = sum(every) / len(every)
            variance = sum((v - mean) ** 2 for v in every) / len(every)  # biased
            mean_square += (mean - layer.running_mean[c].item()) ** 2
            var_square += (variance - layer.running_var[c].item()) ** 2
        gap += (first_weight if index == 0 else 1) * (mean_square**0.5 + var_square**0.5)
    return gap


@pytest.mark.parametrize("first_weight", [1.0, 10.0])
def test_gap_is_that_of_plain_loops(first_weight: float) -> None:
    """Squared norms, unbiased variances, a weight on the wrong layer, statistics after the norm."""
    model, images = two_layers(), rand(6, 3, 7, 7)
    logits, gap = BatchNormProbe(model)(images[None], first_weight)
    expected = gap_by_loops(inputs_of_norms(model, images), model, first_weight)
    assert gap.shape == (1,)
    assert gap.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(logits[0], model(images))


def test_only_the_first_layer_counts_ten_times() -> None:
    """Weights by layer: g(w) = w·first + rest, linear in the first weight."""
    model, images = two_layers(), rand(1, 6, 3, 7, 7)
    probe = BatchNormProbe(model)
    gaps = [probe(images, weight)[1].item() for weight in (0.0, 1.0, 10.0)]
    first = gaps[1] - gaps[0]
    assert first > 0
    assert gaps[2] - gaps[0] == pytest.approx(10 * first, rel=1e-9)
    model.trunk.bn1.running_mean += 100.0
    assert probe(images, 0.0)[1].item() != pytest.approx(gaps[0])  # the second layer's input moves


def test_zero_gap_and_a_finite_gradient_where_statistics_agree() -> None:
    """The norm has no derivative at zero: a NaN there would destroy the pixels."""
    model, images = two_layers(), rand(6, 3, 7, 7)
    for index, layer in enumerate(model.batch_norms()):
        values = torch.from_numpy(inputs_of_norms(model, images)[index])
        layer.running_mean.copy_(values.mean(dim=(0, 2, 3)))
        layer.running_var.copy_(values.var(dim=(0, 2, 3), correction=0))
    _, gap = BatchNormProbe(model)(images[None], 10.0)
    assert gap.item() == pytest.approx(0, abs=1e-10)
    exact = [torch.stack([getattr(layer, name)]).requires_grad_() for layer in model.batch_norms()
             for name in ("running_mean", "running_var")]  # fmt: skip
    zero = batchnorm_gap(exact[::2], exact[1::2], model.batch_norms())
    zero.sum().backward()
    assert zero.item() == 0
    assert all(torch.isfinite(statistic.grad).all() for statistic in exact)


def test_groups_equal_separate_passes_in_value_and_gradient() -> None:
    """Statistics taken over the whole pack, or gradients leaking between BN groups."""
    model = two_layers()
    probe, labels = BatchNormProbe(model), torch.tensor([0, 2, 1, 1])
    together = rand(3, 4, 3, 7, 7).requires_grad_()
    loss, gap = Matching()(probe, together, labels)
    loss.sum().backward()
    for group in range(3):
        alone = together.detach()[group : group + 1].clone().requires_grad_()
        own_loss, own_gap = Matching()(probe, alone, labels)
        own_loss.sum().backward()
        torch.testing.assert_close(loss[group], own_loss[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gap[group], own_gap[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(together.grad[group], alone.grad[0], rtol=1e-10, atol=1e-10)


def test_a_teacher_without_batchnorm_has_no_gap() -> None:
    """AlexNet in a committee contributes its cross-entropy alone (and a gradient of it)."""
    network = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 4, 3), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
                    head=nn.Linear(4, 3))
    )  # fmt: skip
    model = freeze(Classifier("plain", network, "head", 3, MEAN, STD).double())
    images = rand(2, 5, 3, 7, 7).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss, gap = Matching()(BatchNormProbe(model), images, labels)
    assert gap.tolist() == [0, 0]
    for group in range(2):
        expected = nn.functional.cross_entropy(model(images[group]), labels)
        torch.testing.assert_close(loss[group], expected)
    loss.sum().backward()
    assert images.grad.abs().sum() > 0


class Crossed(nn.Module):
    """Two layers that are registered in the other order than they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.BatchNorm2d(3)
        self.early = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.late(self.early(images) ** 2).mean(dim=(2, 3)))


def test_statistics_go_with_their_own_layer() -> None:
    """Layers used in another order than registered: targets of one held against another."""
    network = Crossed().double()
    model = freeze(Classifier("crossed", network, "head", 2, (0, 0, 0), (1, 1, 1)).double())
    images = rand(6, 3, 5, 5)
    early, late = model.trunk.early, model.trunk.late
    early.running_mean.copy_(images.mean(dim=(0, 2, 3)))
    early.running_var.copy_(images.var(dim=(0, 2, 3), correction=0))
    inside = early(images) ** 2
    late.running_mean.copy_(inside.mean(dim=(0, 2, 3)))
    late.running_var.copy_(inside.var(dim=(0, 2, 3), correction=0))
    # `late` is unchanged by its own statistics only if each layer meets its own input.
    assert BatchNormProbe(model)(images[None], 10.0)[1].item() == pytest.approx(0, abs=1e-9)


def test_no_hook_outlives_a_pass() -> None:
    """Hooks left behind slow every later forward pass and hold activations in memory."""
    model = two_layers()
    BatchNormProbe(model)(rand(1, 4, 3, 7, 7), 10.0)
    assert not any(layer._forward_pre_hooks for layer in model.batch_norms())
    with pytest.raises(RuntimeError):
        BatchNormProbe(model)(rand(1, 4, 3, 2, 2), 10.0)  # smaller than the kernel
    assert not any(layer._forward_pre_hooks for layer in model.batch_norms())


def test_objective_is_cross_entropy_plus_weighted_gap() -> None:
    """A sum for the mean over a group, labels out of step with groups, β on the wrong term."""
    logits = 3 * rand(2, 4, 5) - 1
    labels, gap = torch.tensor([4, 0, 2, 2]), torch.tensor([3.0, 7.0], dtype=torch.float64)
    loss = decoupled_objective(logits, labels, gap, 0.01)
    for group in range(2):
        total = 0.0
        for image, label in enumerate(labels.tolist()):
            row = np.exp(logits[group, image].numpy())
            total -= np.log(row[label] / row.sum())
        assert loss[group].item() == pytest.approx(total / 4 + 0.01 * gap[group].item(), rel=1e-12)


def test_defaults_are_those_of_fadrm() -> None:
    """β = 0.01, ten times the first layer, crops of 8 % to 100 %."""
    assert Matching() == Matching(bn_weight=0.01, first_weight=10.0, crop=(0.08, 1.0))
