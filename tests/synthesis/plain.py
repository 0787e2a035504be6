"""What a network says and what flows through it, as numpy arrays: for plain re-computations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reta.models import Classifier


@dataclass
class Inside:
    """Of one forward pass.

    Attributes:
        logits, features: ``(n, …)``.
        entering: ``(n, c, h, w)`` that entered each BatchNorm and convolution, in module order.
    """

    logits: np.ndarray
    features: np.ndarray
    entering: list[tuple[nn.Module, np.ndarray]]


@contextmanager
def recording(model: Classifier, found: dict[nn.Module, np.ndarray]) -> Iterator[list[nn.Module]]:
    layers = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d | nn.Conv2d)]

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found[layer] = inputs[0].detach().double().numpy().copy()

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def inside(model: Classifier, images: torch.Tensor) -> Inside:
    """Run a network on images ``(n, 3, s, s)``."""
    found: dict[nn.Module, np.ndarray] = {}
    with recording(model, found) as layers:
        features = model.features(images)
        logits = model.head(features)
    entering = [(layer, found[layer]) for layer in layers]
    return Inside(logits.double().numpy(), features.double().numpy(), entering)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy."""
    highest = logits.max(axis=1, keepdims=True)
    log_sum = highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=1))
    return float((log_sum - logits[np.arange(len(labels)), labels]).mean())


def norm_gap(seen: Inside, first_weight: float) -> float:
    """Return the alignment term of Eq. 1 of one group."""
    norms = [(layer, x) for layer, x in seen.entering if isinstance(layer, nn.BatchNorm2d)]
    total = 0.0
    for index, (layer, x) in enumerate(norms):
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        gap = np.linalg.norm(mean - layer.running_mean.double().numpy())
        gap += np.linalg.norm(variance - layer.running_var.double().numpy())
        total += (first_weight if index == 0 else 1) * gap
    return total
