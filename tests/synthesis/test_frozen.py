"""The rewritten teacher against the teacher itself, read by hooks: the fast path and the plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reta.models import Classifier, build, freeze, wrap
from reta.runtime import half_precision
from reta.synthesis.frozen import frozen
from reta.synthesis.matching import decoupled_objective
from reta.synthesis.probes import BatchNormProbe, FrozenProbe, Probe, probe

SIZE, CLASSES = 16, 4


def teacher_of(name: str) -> Classifier:
    """Return a float64 teacher whose norms are not the identity."""
    model = build(name, CLASSES, SIZE, mean=(0.5, 0.45, 0.4), std=(0.2, 0.25, 0.3)).double()
    generator = torch.Generator().manual_seed(1)
    for layer in model.batch_norms():
        shape, options = (layer.num_features,), {"generator": generator, "dtype": torch.float64}
        layer.running_mean.copy_(0.1 * torch.randn(shape, **options))
        layer.running_var.copy_(0.5 + torch.rand(shape, **options))
        layer.weight.data.copy_(torch.rand(shape, **options) - 0.3)  # some below zero
        layer.bias.data.copy_(0.2 * torch.randn(shape, **options))
    return freeze(model)


def answer(read: Probe, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return loss and gap of each group and the pixel gradient."""
    leaf = images.clone().requires_grad_()
    logits, gap = read(leaf, 10.0)
    loss = decoupled_objective(logits, torch.arange(images.shape[1]) % CLASSES, gap, 0.01)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gap.detach(), gradient


def images(groups: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = (groups, 3, 3, SIZE, SIZE)
    return torch.rand(shape, generator=torch.Generator().manual_seed(groups)).to(dtype)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "convnet3",
        "resnet18",
        "densenet121",
        "shufflenet_v2_x0_5",
        "mobilenet_v2",
        "efficientnet_b0",
    ],
)
def test_numbers_are_those_of_the_plain_path(name: str, groups: int) -> None:
    """A ReLU absorbed at the wrong place, a part's statistics in the wrong layer, a lost term."""
    teacher = teacher_of(name)
    fast = probe(teacher)
    assert isinstance(fast, FrozenProbe)
    for own, plain in zip(
        answer(fast, images(groups)), answer(BatchNormProbe(teacher), images(groups)), strict=True
    ):
        assert plain.abs().max() > 0
        torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-9 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["convnet3", "mobilenet_v2"])
def test_float32_is_close_to_float64(name: str) -> None:
    """The accuracy promised: 1e-5, but for images where rounding moves a unit across a ReLU."""
    teacher = teacher_of(name)
    single = copy.deepcopy(teacher).float()
    errors = []
    for groups in (1, 2, 3):
        exact = answer(BatchNormProbe(teacher), images(groups))[2]
        own = answer(probe(single), images(groups, torch.float32))[2]
        errors.append(float((own - exact).norm() / exact.norm()))
    assert sorted(errors)[1] <= 1e-5


def kept_bytes(read: Probe, teacher: Classifier) -> int:
    """Return the bytes autograd keeps for a step, weights aside."""
    weights = {parameter.data_ptr() for parameter in teacher.parameters()}
    kept: dict[int, int] = {}
    held = []  # or an address could be used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        if tensor.data_ptr() not in weights and tensor.ndim == 4 and len(tensor) == 3:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    leaf = images(1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        read(leaf, 10.0)
    return sum(kept.values())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    """A convolution that keeps its input again, or a ReLU its output."""
    teacher = teacher_of(name)
    assert kept_bytes(probe(teacher), teacher) < 0.8 * kept_bytes(BatchNormProbe(teacher), teacher)


def test_features_come_without_statistics() -> None:
    """Topology asks for features and their gradient; they must be the teacher's."""
    teacher = teacher_of("resnet18")
    fast = probe(teacher)
    answer(fast, images(2))  # leaves nothing behind
    results = []
    for model in (fast.teacher, teacher):
        leaf = images(1)[0].requires_grad_()
        features = model.features(leaf)
        results.append((features.detach(), torch.autograd.grad(features.sum(), leaf)[0]))
    for own, plain in zip(*results, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-9)


class Moody(nn.Module):
    """A network whose course depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.convolution(x))
        if x.mean() > 0:
            x = x.relu()
        return self.head(x.mean(dim=(2, 3)))


def test_a_network_that_cannot_be_rewritten_is_read_by_hooks() -> None:
    """One's own module may branch; it must work, only not as fast."""
    teacher = freeze(wrap(Moody(), CLASSES, SIZE))
    assert frozen(teacher) is None
    assert isinstance(probe(teacher), BatchNormProbe)


class Twice(nn.Module):
    """A network that calls a convolution twice, and BatchNorm without a ReLU at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding="same")
        self.norm, self.bare = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(2):
            x = self.again(torch.relu(self.norm(x)))
        y = self.bare(x)
        return self.head((torch.cat([y, x], dim=1)[:, :4] + y.relu()).mean(dim=(2, 3)))


def test_layers_called_twice_and_norms_without_weights() -> None:
    """Modules exchanged under their old name would serve both calls; bare norms have no weight."""
    torch.manual_seed(0)
    teacher = freeze(wrap(Twice(), CLASSES, SIZE).double())
    for own, plain in zip(
        answer(probe(teacher), images(2)), answer(BatchNormProbe(teacher), images(2)), strict=True
    ):
        torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(half_precision(torch.device("cpu"))[0] is None, reason="no float16 here")
@pytest.mark.parametrize("scale", [1.0, 2.0**12, 2.0**16])
def test_float16_points_the_same_way(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale that is not taken back, gradients that vanish, sums in 16 bits."""
    monkeypatch.setattr("reta.synthesis.probes._LOSS_SCALE", scale)
    teacher = teacher_of("convnet3")
    short = probe(copy.deepcopy(teacher).float(), torch.float16)
    exact = answer(BatchNormProbe(teacher), images(2))
    loss, gap, gradient = answer(short, images(2, torch.float32))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact[0], rtol=0.01, atol=0)
    torch.testing.assert_close(gap.double(), exact[1], rtol=0.01, atol=0)
    torch.testing.assert_close(gradient.norm().double(), exact[2].norm(), rtol=0.01, atol=0)
    cosine = (gradient * exact[2]).sum() / (gradient.norm() * exact[2].norm())
    assert cosine >= 0.998
    features = short.teacher.features(images(1, torch.float32)[0])  # outside: in float32
    torch.testing.assert_close(features.double(), teacher.features(images(1)[0]))
