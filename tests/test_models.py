"""Every architecture: shapes, stems, features, normalisation, initial weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from reta import models
from reta.errors import UsageError
from reta.runtime import full_precision, seeded
from reta.synthesis.relabel import committee_logits

SMALL_NAMES = [name for name in models.names() if name != "alexnet"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting for each other on a busy machine: five times faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_small_images_give_features_and_logits(name: str) -> None:
    model = models.freeze(models.build(name, 7, 32))
    features = model.features(images(2, 32))
    assert features.shape == (2, model.feature_dim)
    torch.testing.assert_close(model(images(2, 32)), model.head(features))
    assert model(images(2, 32)).shape == (2, model.classes) == (2, 7)
    assert model.name == name


def test_alexnet_gives_features_and_logits() -> None:
    """The one network that needs larger images; dropout in its head would part the two."""
    model = models.freeze(models.build("alexnet", 3, 72))
    features = model.features(images(2, 72))
    assert features.shape == (2, 4096)
    torch.testing.assert_close(model(images(2, 72)), model.head(features))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "convnet4", "swin_t"])
def test_images_of_64_px(name: str) -> None:
    assert models.freeze(models.build(name, 3, 64))(images(1, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    "name", ["alexnet", "resnet18", *[pytest.param(n, marks=pytest.mark.slow) for n in SMALL_NAMES]]
)
def test_images_of_224_px(name: str) -> None:
    assert models.freeze(models.build(name, 3, 224))(images(1, 224)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("shufflenet_v2_x1_0", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("efficientnet_b0", "classifier.1"),
        ("densenet121", "classifier"),
        ("swin_t", "head"),
        ("alexnet", "classifier.6"),
    ],
)
def test_features_are_what_torchvision_feeds_its_last_layer(name: str, head: str) -> None:
    with seeded(0, "weights", name):
        original = get_model(name, weights=None, num_classes=3).eval()
    fed: list[torch.Tensor] = []
    original.get_submodule(head).register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    model = models.freeze(models.build(name, 3, 96, mean=(0, 0, 0), std=(1, 1, 1)))
    with torch.no_grad():
        logits = original(images(2, 96))
        torch.testing.assert_close(model(images(2, 96)), logits)
        torch.testing.assert_close(model.features(images(2, 96)), fed[0])


def test_normalisation_is_inside() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    plain = models.freeze(models.build("convnet3", 3, 16, mean=(0, 0, 0), std=(1, 1, 1)))
    model = models.freeze(models.build("convnet3", 3, 16, mean=mean, std=std))
    by_hand = (images(2, 16) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(model(images(2, 16)), plain(by_hand))
    assert {"mean", "std"} <= model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "layer", "size", "small", "large"),
    [
        ("resnet18", "layer1", 32, 32, 8),
        ("resnet18", "layer1", 64, 64, 16),
        ("densenet121", "features.denseblock1", 32, 32, 8),
        ("mobilenet_v2", "features.0", 32, 32, 16),
        ("mobilenet_v2", "features.2", 32, 32, 8),
        ("mobilenet_v2", "features.4", 32, 16, 4),
        ("shufflenet_v2_x0_5", "stage2", 32, 16, 4),
        ("efficientnet_b0", "features.0", 32, 32, 16),
    ],
)
def test_small_stems_keep_the_resolution(
    name: str, layer: str, size: int, small: int, large: int
) -> None:
    for image_size, side in ((size, small), (224, large)):
        model = models.freeze(models.build(name, 3, image_size))
        seen: list[torch.Size] = []
        model.trunk.get_submodule(layer).register_forward_hook(
            lambda _m, _i, output, seen=seen: seen.append(output.shape)
        )
        model(images(1, size))
        assert seen[0][-2:] == (side, side)


CONVOLUTIONAL = [name for name in SMALL_NAMES if name not in ("swin_t", "efficientnet_b0")]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        *[(name, "layer4") for name in ("resnet18", "resnet50", "resnet101", "wide_resnet50_2")],
        *[(name, "features.norm5") for name in ("densenet121", "densenet169", "densenet201")],
        ("mobilenet_v2", "features.18"),
        *[(name, "conv5") for name in ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0")],
    ],
)
def test_fadrms_networks_end_in_four_by_four(name: str, last: str) -> None:
    """FADRM's networks for CIFAR pool 4 × 4 features: a stride too many or few in any stem."""
    seen: list[torch.Size] = []
    with torch.device("meta"):  # shapes alone
        model = models.freeze(models.build(name, 3, 32))
        model.trunk.get_submodule(last).register_forward_hook(
            lambda _m, _i, output: seen.append(output.shape)
        )
        model(torch.rand(1, 3, 32, 32))
    assert seen[0][-2:] == (4, 4)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_fadrms_stems(name: str) -> None:
    """FADRM's table: 3 × 3, stride 1, padding 1, as many channels as before, and no pool."""
    with torch.device("meta"):
        layers = list(models.build(name, 3, 32).trunk.modules())
        original = get_model("resnet18" if name.startswith("convnet") else name, weights=None)
    stem = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in layers)
    if not name.startswith("convnet"):
        first = next(layer for layer in original.modules() if isinstance(layer, nn.Conv2d))
        assert stem.out_channels == first.out_channels


def test_first_convolutions() -> None:
    def first(name: str, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        convolutions = (m for m in models.build(name, 3, size).modules() if type(m) is nn.Conv2d)
        convolution = next(convolutions)
        return convolution.kernel_size, convolution.stride

    for name in ("resnet18", "densenet121", "mobilenet_v2", "shufflenet_v2_x0_5"):
        assert first(name, 64) == ((3, 3), (1, 1))
    assert first("swin_t", 64) == ((2, 2), (2, 2))
    assert first("swin_t", 65) == ((4, 4), (4, 4))
    assert first("resnet18", 65) == ((7, 7), (2, 2))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", 20),
        ("densenet121", 121),
        ("shufflenet_v2_x0_5", 56),
        ("mobilenet_v2", 52),
        ("convnet4", 4),
        ("swin_t", 0),
    ],
)
def test_batch_norms_in_registration_order(name: str, layers: int) -> None:
    model = models.build(name, 3, 32)
    found = model.batch_norms()
    assert len(found) == layers
    assert all(layer.track_running_stats for layer in found)
    if name == "resnet18":
        assert found[0] is model.trunk.get_submodule("bn1")


def test_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (models.build("resnet18", 3, 32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(one.state_dict()["head.weight"], other.state_dict()["head.weight"])


def test_freeze_and_gradients_to_the_pixels() -> None:
    model = models.build("convnet3", 3, 8)
    assert models.freeze(model) is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    pixels = images(2, 8).requires_grad_()
    model(pixels).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_head_leaves_the_features_alone_in_train_mode() -> None:
    model = models.build("efficientnet_b0", 3, 32).train()
    features = torch.ones(2, model.feature_dim)
    model.head(features)
    assert torch.equal(features, torch.ones(2, model.feature_dim))


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("resnet_18", 32, r"'resnet_18' .did you mean 'resnet18'.*convnet5"),
        ("convnet5", 16, "at least 32 px, not 16; use convnet4"),
        ("convnet3", 7, "at least 8 px, not 7; use larger images"),
        ("alexnet", 64, "larger than 64 px"),
        ("resnet18", 4, "at least 8 px"),
    ],
)
def test_refusals_name_the_fix(name: str, size: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        models.build(name, 3, size)


def test_std_must_be_positive() -> None:
    with pytest.raises(UsageError, match="positive"):
        models.build("convnet3", 3, 8, std=(0.0, 1.0, 1.0))


class Small(nn.Module):
    """A network of one's own: no BatchNorm, and a linear layer before its head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.neck = nn.Linear(8, 6)
        self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.body(pixels).relu().mean((2, 3))
        logits: torch.Tensor = self.out(self.neck(hidden).relu())
        return logits


@pytest.mark.parametrize("head", [None, "out", "out.1"])
def test_any_module_is_taken_apart(head: str | None) -> None:
    """The wrong layer taken for the head, or the caller's module changed."""
    module = Small(5).eval()
    keys = list(module.state_dict())
    model = models.freeze(models.wrap(module, 5, 16, mean=(0, 0, 0), std=(1, 1, 1), head=head))
    features = model.features(images(3, 16))
    assert features.shape == (3, 6) == (3, model.feature_dim)
    torch.testing.assert_close(model.head(features), module(images(3, 16)))
    assert list(module.state_dict()) == keys
    assert model.batch_norms() == []


class Apart(nn.Module):
    """Adds something after its linear layer, so that layer is no head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(pixels.mean((2, 3))) * 2
        return logits


@pytest.mark.parametrize(
    ("module", "head", "said"),
    [
        (Small(5), "neck", "'neck' does not map|does not map images"),
        (Small(5), "nothing", "'nothing' is no submodule"),
        (Small(4), None, "no linear layer with 5 outputs"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), None, "does not map images"),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(14, 5)), None, "does not map a feature"),
        (
            nn.Sequential(
                nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(768, 5)
            ),
            None,
            "without running statistics",
        ),
    ],
)
def test_a_module_that_is_no_classifier_is_refused(
    module: nn.Module, head: str | None, said: str
) -> None:
    """A module whose features or logits are not what they seem, taken at its word."""
    with pytest.raises(UsageError, match=said):
        models.wrap(module, 5, 16, head=head)
    with pytest.raises(UsageError, match="does not map a feature"):
        models.wrap(Apart(), 4, 16)


def test_a_registered_network_is_one_of_the_names() -> None:
    """A network of one's own that `build` does not seed, or that hides one of ours."""
    models.register("small_one", lambda classes, image_size: Small(classes))
    one, same = (models.build("small_one", 3, 16, seed=4) for _ in range(2))
    assert "small_one" in models.names()
    assert torch.equal(one.head.weight, same.head.weight)
    for name in ("resnet18", "convnet3", "a/b", "a@b", "timm:x"):
        with pytest.raises(UsageError, match="cannot name"):
            models.register(name, lambda classes, image_size: Small(classes))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_timm_networks(name: str) -> None:
    """Features that are not what timm's own classifier is fed; layers that BatchNorm hides in."""
    timm = pytest.importorskip("timm")
    settings = {"img_size": 32} if name == "test_vit" else {}
    with seeded(0, "weights", f"timm:{name}"):
        original = timm.create_model(name, num_classes=3, **settings).eval()
    model = models.build(f"timm:{name}", 3, 32, mean=(0, 0, 0), std=(1, 1, 1))
    for layer in model.batch_norms():
        assert type(layer).forward is nn.BatchNorm2d.forward
    assert bool(model.batch_norms()) == (name in ("test_resnet", "test_efficientnet"))
    models.freeze(model)
    with torch.no_grad():
        fed = original.forward_head(original.forward_features(images(2, 32)), pre_logits=True)
        torch.testing.assert_close(model.features(images(2, 32)), fed)
        torch.testing.assert_close(model(images(2, 32)), original(images(2, 32)))


def test_timm_layers_that_normalise_and_activate_keep_the_activation() -> None:
    """Labels are made under batch statistics: relabelling a timm network must equal train mode."""
    pytest.importorskip("timm")
    model = models.build("timm:test_efficientnet", 3, 32)
    views = images(8, 32)
    with torch.no_grad():
        by_hand = model.train()(views)
    with full_precision():
        ours = committee_logits([models.freeze(model)], views, [8])
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)


def test_an_unknown_timm_network_names_the_nearest() -> None:
    """A list of a thousand names for an answer."""
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="did you mean timm:resnet18"):
        models.check("timm:resnet_18", 32)
