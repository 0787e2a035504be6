"""Architectures by name: torchvision's, with stems that fit small images, ConvNets, timm's, yours.

FADRM's stems, which torchvision's networks get up to 64 px: a 3 × 3 convolution of stride 1 and no
pool for ResNets, DenseNets and ShuffleNets; stride 1 in the stem and in the second stage for
MobileNetV2. All of them end in 4 × 4 features at 32 px.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.models import get_model

from reta.errors import UsageError, unknown
from reta.models.classifier import Classifier, wrap
from reta.runtime import seeded

Builder = Callable[[int, int], nn.Module]

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
_INSTANCE = {f"{name}_in": depth for name, depth in _CONVNETS.items()}
_OURS = _CONVNETS | _INSTANCE
_CONVNET_WIDTH = 128
_TIMM = "timm:"
_REGISTERED: dict[str, Builder] = {}


def names() -> list[str]:
    """Return the names that `build` accepts, besides ``timm:NAME``."""
    return [*_TORCHVISION, *_CONVNETS, *_INSTANCE, *_REGISTERED]


def register(name: str, make: Builder) -> None:
    """Make a network of one's own known by a name, for teachers and students of this process.

    Args:
        name: letters, digits, ``_``, ``.`` and ``-``; not that of another network.
        make: takes the number of classes and the side of the images in pixels and returns a
            freshly initialised module that maps normalised images (n, 3, s, s) to logits.

    Raises:
        UsageError: if the name cannot be used.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name in {**_TORCHVISION, **_OURS}:
        raise UsageError(f"{name!r} cannot name a network of your own; choose another, like my_net")
    _REGISTERED[name] = make


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

    Up to 64 px the early strides and pools made for 224 px are left out of torchvision's networks,
    as in FADRM's; timm's and one's own are taken as they are. The same name, sizes and seed give
    the same weights; torch's global state is left alone.

    Args:
        name: one of `names()`, or ``timm:NAME``.
        classes: number of classes.
        image_size: side of the images in pixels.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1]; positive.
        seed: of the initial weights.

    Raises:
        UsageError: if the name is unknown or the network does not work at that size.
    """
    check(name, image_size)
    with seeded(seed, "weights", name):
        module = network(name, classes, image_size)
    return dress(name, module, classes, image_size, mean, std)


def instance_convnet(
    classes: int,
    image_size: int,
    *,
    width: int = _CONVNET_WIDTH,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    seed: int = 0,
) -> Classifier:
    """Return ``convnet3_in``, freshly initialised, of any width; deeper for larger images.

    Dataset condensation's network: three blocks up to 32 px, four up to 64, five above.
    """
    depth = 3 if image_size <= 32 else 4 if image_size <= 64 else 5
    name = f"convnet{depth}_in"
    check(name, image_size)
    with seeded(seed, "weights", name, width):
        module = _instance_convnet(depth, classes, image_size, width)
    return Classifier(name, module, "head", classes, mean, std)


def network(name: str, classes: int, image_size: int) -> nn.Module:
    """Return the bare module of an architecture, as its own library names its parameters.

    Initial weights are drawn from torch's global state.
    """
    if name.startswith(_TIMM):
        return _timm(name.removeprefix(_TIMM), classes, image_size)
    if name in _REGISTERED:
        return _REGISTERED[name](classes, image_size)
    if name in _CONVNETS:
        return _convnet(_CONVNETS[name], classes)
    if name in _INSTANCE:
        return _instance_convnet(_INSTANCE[name], classes, image_size, _CONVNET_WIDTH)
    module: nn.Module = get_model(name, weights=None, num_classes=classes)
    if image_size <= SMALL:
        _refit(module, _TORCHVISION[name].stem)
    return module


def dress(
    name: str,
    module: nn.Module,
    classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """Return what `network` returned, weights loaded or not, as a classifier; it is taken over."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError("mean and std need three channels each, and std must be positive")
    if name in _TORCHVISION:
        return Classifier(name, module, _TORCHVISION[name].head, classes, mean, std)
    if name in _OURS:
        return Classifier(name, module, "head", classes, mean, std)
    return wrap(module, classes, image_size, mean=mean, std=std, name=name)


def check(name: str, image_size: int) -> None:
    """Raise UsageError if there is no such network, or it would shrink the image to nothing."""
    if name.startswith(_TIMM):
        _check_timm(name.removeprefix(_TIMM))
    elif name not in names():
        raise unknown("model", name, [*names(), f"{_TIMM}NAME"])
    if name in _OURS and image_size < 2 ** _OURS[name]:
        kind = _CONVNETS if name in _CONVNETS else _INSTANCE
        fits = [other for other, depth in kind.items() if 2**depth <= image_size]
        raise UsageError(
            f"{name} halves the image {_OURS[name]} times and needs at least "
            f"{2 ** _OURS[name]} px, not {image_size}; use "
            f"{fits[-1] if fits else 'larger images'}"
        )
    if image_size < SMALLEST:
        raise UsageError(f"{name} needs images of at least {SMALLEST} px, not {image_size}")
    if name in _TORCHVISION and _TORCHVISION[name].large_only and image_size <= SMALL:
        raise UsageError(
            f"{name} works on images larger than {SMALL} px, not on {image_size} px; "
            "use resnet18 or convnet3, or a larger image size"
        )


def _check_timm(name: str) -> None:
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"timm:{name} needs timm: pip install 'reta[timm]'") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean timm:{near[0]}?" if near else ""
        raise UsageError(f"timm has no model {name!r}{hint} (timm.list_models() names them all)")


def _timm(name: str, classes: int, image_size: int) -> nn.Module:
    """Return a model of timm with random weights; transformers are made for the image size."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = (
        {"img_size": image_size} if settings and settings.fixed_input_size else {}
    )
    try:
        module: nn.Module = timm.create_model(name, num_classes=classes, **sized)
    except (AssertionError, TypeError) as error:
        raise UsageError(f"timm:{name} does not work on {image_size} px: {error}") from error
    return module


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
    network = _blocks(depth, _CONVNET_WIDTH, nn.BatchNorm2d)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("head", nn.Linear(_CONVNET_WIDTH, classes))
    return network


def _instance_convnet(depth: int, classes: int, image_size: int, width: int) -> nn.Sequential:
    """Return the ConvNet as bilevel methods use it: each image normed by itself, no global pool."""
    network = _blocks(depth, width, lambda channels: nn.GroupNorm(channels, channels))
    network.add_module("flatten", nn.Flatten())
    network.add_module("head", nn.Linear(width * (image_size // 2**depth) ** 2, classes))
    return network


def _blocks(depth: int, width: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    network = nn.Sequential()
    channels = 3
    for block in range(depth):
        network.add_module(
            f"block{block}",
            nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=1),
                norm(width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ),
        )
        channels = width
    return network
