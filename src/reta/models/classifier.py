"""What reta asks of a network: logits, penultimate features, and its BatchNorm layers.

A `Classifier` takes images in [0, 1] and normalises them itself: no other part of reta knows a
mean or a standard deviation.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn

from reta.errors import UsageError


class Classifier(nn.Module):
    """A network that classifies images in [0, 1]: normalisation, trunk, head.

    Attributes:
        name: the architecture, as given to `build`.
        classes: number of logits.
        feature_dim: length of a feature vector.
        trunk: maps normalised images (n, 3, h, w) to features (n, feature_dim).
        head: maps features to logits (n, classes); any dropout before the logits is part of it.
        mean, std: what images are normalised with, (1, 3, 1, 1).
        stacked: axes of every weight before those of one network: 1 in a `StackedClassifier`.
    """

    mean: torch.Tensor
    std: torch.Tensor
    stacked = 0

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
        return self.logits(self.features(images))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of features, in float32 though the features be shorter.

        At T = 20 probabilities differ by a hundredth, which is lost in the 8 bits of bfloat16.
        """
        if features.dtype not in (torch.float16, torch.bfloat16):
            logits: torch.Tensor = self.head(features)
            return logits
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.to(self.mean.dtype))
            return logits

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return penultimate, globally pooled features (n, feature_dim) of images in [0, 1]."""
        features: torch.Tensor = self.trunk((images - self.mean) / self.std)
        return features

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """Return the BatchNorm layers in registration order (none in AlexNet and Swin)."""
        return [part for part in self.modules() if isinstance(part, nn.BatchNorm2d)]


def preferred_layout(model: Classifier) -> torch.memory_format:
    """Return the memory layout in which a network's convolutions are fastest.

    Channels last, some 1.1 to 1.6 times faster on CPUs and tensor cores, but for networks that
    shuffle channels: every shuffle would go back to channels first.
    """
    if model.stacked or "shufflenet" in model.name:  # five axes have no such layout
        return torch.contiguous_format
    return torch.channels_last


def freeze(model: Classifier) -> Classifier:
    """Put a model in eval mode, switch its gradients off and return it."""
    model.requires_grad_(False)
    model.eval()
    return model


def file_stem(name: str) -> str:
    """Return an architecture's name as part of a file's name: ``timm:x`` becomes ``timm-x``."""
    return re.sub(r"[^\w.+-]+", "-", name)


def wrap(
    module: nn.Module,
    classes: int,
    image_size: int,
    *,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    head: str | None = None,
    name: str = "module",
) -> Classifier:
    """Return any image classifier as a `Classifier`: its head is found, and checked on two images.

    Args:
        module: maps normalised images (n, 3, s, s) to logits (n, classes); a copy is used.
        classes: number of logits.
        image_size: side of the images it is checked on, in pixels.
        mean: per channel, of images in [0, 1], that the module expects subtracted.
        std: per channel, likewise, divided by.
        head: path of the submodule that maps features (n, d) to logits; by default the last
            linear layer with so many outputs.
        name: for messages and files.

    Raises:
        UsageError: if there is no such head, what enters it is no vector per image, or the
            module has BatchNorm layers whose statistics cannot be read.
    """
    module = _plain_norms(copy.deepcopy(module).cpu()).eval()
    fits = [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == classes
    ]
    if head is None and not fits:
        raise UsageError(f"{name}: no linear layer with {classes} outputs; name its head")
    path = head or fits[-1]
    if not path or path not in dict(module.named_modules()):
        raise UsageError(f"{name}: {path!r} is no submodule of it; name its head, like 'fc'")
    probe = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    shift, scale = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
    with torch.no_grad():
        try:
            before = module((probe - shift) / scale)
            model = Classifier(name, module, path, classes, mean, std)
            features, after = model.features(probe), model(probe)
        except (RuntimeError, TypeError, AssertionError, IndexError, AttributeError) as error:
            raise UsageError(
                f"{name} does not map images (2, 3, {image_size}, {image_size}) to logits: {error}"
            ) from error
    if features.ndim != 2 or after.shape != (2, classes) or not torch.allclose(before, after):
        raise UsageError(
            f"{name}: {path!r} does not map a feature vector per image to {classes} logits; "
            "name the submodule that does: wrap(…, head=…)"
        )
    return model.train()


def _plain_norms(module: nn.Module) -> nn.Module:
    """Return a module in which every BatchNorm layer is torch's own and keeps statistics.

    timm has layers that normalise and then activate in one; they are taken apart, because labels
    are made under batch statistics and the alignment term reads what enters each layer.
    """
    for path, layer in list(module.named_modules()):
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        if layer.running_mean is None:
            raise UsageError(f"{path}: BatchNorm without running statistics cannot be matched")
        if type(layer).forward is nn.BatchNorm2d.forward:
            continue
        after = [part for name, part in layer.named_children() if name in ("drop", "act")]
        if not path or len(after) != 2:
            raise UsageError(f"{path}: {type(layer).__name__} is no plain BatchNorm2d; use that")
        plain = nn.BatchNorm2d(
            layer.num_features, layer.eps, layer.momentum, layer.weight is not None
        )
        plain.load_state_dict(
            {k: v for k, v in layer.state_dict().items() if k in plain.state_dict()}
        )
        module.set_submodule(path, nn.Sequential(plain, *after))
    return module
