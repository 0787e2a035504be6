"""Classifiers: torchvision's architectures and the ConvNet, with stems that fit small images.

A `Classifier` takes images in [0, 1] and normalises them itself: no other part of reta knows a
mean or a standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torchvision.models import get_model

from reta.errors import UsageError, unknown
from reta.runtime import seeded

SMALL = 64
"""Side in pixels up to which a network gets a stem that keeps the resolution."""

SMALLEST = 8
"""Smallest side in pixels: below it the strides of most networks leave nothing."""


@dataclass(frozen=True)
class _Family:
    """How the architectures of one torchvision family are taken apart.

    Attributes:
        members: their torchvision names.
        head: path of the module that maps features to logits.
        stem: for images up to `SMALL` px, the (kernel, stride) of each early convolution by its
            path; None removes the module.
        large_only: whether the architecture does not work on images up to `SMALL` px at all.
    """

    members: tuple[str, ...]
    head: str
    stem: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    large_only: bool = False


_FAMILIES = (
    _Family(
        ("resnet18", "resnet50", "resnet101", "wide_resnet50_2"),
        head="fc",
        stem={"conv1": (3, 1), "maxpool": None},
    ),
    _Family(
        ("densenet121", "densenet169", "densenet201"),
        head="classifier",
        stem={"features.conv0": (3, 1), "features.pool0": None},
    ),
    _Family(
        ("mobilenet_v2",),
        head="classifier",
        stem={"features.0.0": (3, 1), "features.2.conv.1.0": (3, 1)},
    ),
    _Family(
        ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
        head="fc",
        stem={"conv1.0": (3, 1), "maxpool": None},
    ),
    _Family(("efficientnet_b0",), head="classifier", stem={"features.0.0": (3, 1)}),
    _Family(("swin_t",), head="head", stem={"features.0.0": (2, 2)}),
    _Family(("alexnet",), head="classifier.6", large_only=True),
)
_TORCHVISION = {name: family for family in _FAMILIES for name in family.members}
_CONVNETS = {f"convnet{depth}": depth for depth in (3, 4, 5)}
_CONVNET_WIDTH = 128


class Classifier(nn.Module):
    """A network that classifies images in [0, 1]: normalisation, trunk, head.

    Attributes:
        name: the architecture, as given to `build`.
        classes: number of logits.
        feature_dim: length of a feature vector.
        trunk: maps normalised images (n, 3, h, w) to features (n, feature_dim).
        head: maps features to logits (n, classes); any dropout before the logits is part of it.
        mean, std: what images are normalised with, (1, 3, 1, 1).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        head: str,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.name = name
        self.classes = classes
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.head = network.get_submodule(head)
        network.set_submodule(head, nn.Identity())
        self.trunk = network
        last = [part for part in self.head.modules() if isinstance(part, nn.Linear)][-1]
        self.feature_dim = last.in_features
        for part in self.head.modules():
            if isinstance(part, nn.Dropout):
                part.inplace = False  # or head(features) would change the caller's features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of images (n, 3, h, w) in [0, 1]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return penultimate, globally pooled features (n, feature_dim) of images in [0, 1]."""
        features: torch.Tensor = self.trunk((images - self.mean) / self.std)
        return features

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """Return the BatchNorm layers in registration order (none in AlexNet and Swin)."""
        return [part for part in self.modules() if isinstance(part, nn.BatchNorm2d)]


def names() -> list[str]:
    """Return the names that `build` accepts."""
    return [*_TORCHVISION, *_CONVNETS]


def build(
    name: str,
    classes: int,
    image_size: int,
    *,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    seed: int = 0,
) -> Classifier:
    """Return a freshly initialised classifier whose stem fits the image size.

    Up to 64 px the early strides and pools made for 224 px are left out, as in FADRM's networks.
    The same name, sizes and seed give the same weights; torch's global state is left alone.

    Args:
        name: one of `names()`.
        classes: number of classes.
        image_size: side of the images in pixels.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1]; positive.
        seed: of the initial weights.

    Raises:
        UsageError: if the name is unknown or the network does not work at that size.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError("mean and std need three channels each, and std must be positive")
    check(name, image_size)
    with seeded(seed, "weights", name):
        if name in _CONVNETS:
            network, head = _convnet(_CONVNETS[name], classes), "head"
        else:
            family = _TORCHVISION[name]
            network, head = get_model(name, weights=None, num_classes=classes), family.head
            if image_size <= SMALL:
                _refit(network, family.stem)
    return Classifier(name, network, head, classes, mean, std)


def freeze(model: Classifier) -> Classifier:
    """Put a model in eval mode, switch its gradients off and return it."""
    model.requires_grad_(False)
    model.eval()
    return model


def check(name: str, image_size: int) -> None:
    """Raise UsageError if there is no such network, or it would shrink the image to nothing."""
    if name not in names():
        raise unknown("model", name, names())
    if name in _CONVNETS and image_size < 2 ** _CONVNETS[name]:
        fits = [other for other, depth in _CONVNETS.items() if 2**depth <= image_size]
        raise UsageError(
            f"{name} halves the image {_CONVNETS[name]} times and needs at least "
            f"{2 ** _CONVNETS[name]} px, not {image_size}; use "
            f"{fits[-1] if fits else 'larger images'}"
        )
    if image_size < SMALLEST:
        raise UsageError(f"{name} needs images of at least {SMALLEST} px, not {image_size}")
    if name in _TORCHVISION and _TORCHVISION[name].large_only and image_size <= SMALL:
        raise UsageError(
            f"{name} works on images larger than {SMALL} px, not on {image_size} px; "
            "use resnet18 or convnet3, or a larger image size"
        )


def _refit(network: nn.Module, stem: Mapping[str, tuple[int, int] | None]) -> None:
    """Exchange the early convolutions of a network and remove its early pools, in place."""
    for path, fit in stem.items():
        if fit is None:
            network.set_submodule(path, nn.Identity())
            continue
        old = network.get_submodule(path)
        assert isinstance(old, nn.Conv2d)
        kernel, stride = fit
        new = nn.Conv2d(
            old.in_channels,
            old.out_channels,
            kernel,
            stride,
            padding=(kernel - 1) // 2,
            groups=old.groups,
            bias=old.bias is not None,
        )
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        network.set_submodule(path, new)


def _convnet(depth: int, classes: int) -> nn.Sequential:
    """Return dataset condensation's ConvNet: ``depth`` blocks of convolution, norm, ReLU, pool.

    The norm is BatchNorm, since decoupled distillation matches its statistics, and a global
    average pool before the head makes the network independent of the image size.
    """
    network = nn.Sequential()
    channels = 3
    for block in range(depth):
        network.add_module(
            f"block{block}",
            nn.Sequential(
                nn.Conv2d(channels, _CONVNET_WIDTH, 3, padding=1),
                nn.BatchNorm2d(_CONVNET_WIDTH),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ),
        )
        channels = _CONVNET_WIDTH
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("head", nn.Linear(channels, classes))
    return network
