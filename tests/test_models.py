"""Every architecture: shapes, stems, features, normalisation, initial weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from reta import models
from reta.errors import UsageError
from reta.runtime import seeded

HEAVY = {"resnet101", "wide_resnet50_2", "densenet169", "densenet201"}
SMALL_NAMES = [name for name in models.names() if name != "alexnet"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting for each other on a busy machine: five times faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def marked(names: list[str]) -> list[object]:
    """Put the heavy networks off to the long run."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in names]


def images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", marked(SMALL_NAMES))
def test_small_images_give_features_and_logits(name: str) -> None:
    model = models.freeze(models.build(name, 7, 32))
    features = model.features(images(2, 32))
    assert features.shape == (2, model.feature_dim)
    torch.testing.assert_close(model(images(2, 32)), model.head(features))
    assert model(images(2, 32)).shape == (2, model.classes) == (2, 7)
    assert model.name == name


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
