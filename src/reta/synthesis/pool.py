"""The real images of each class, seen once by the frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from reta.data.sources import ImageSet
from reta.models import Classifier
from reta.progress import track
from reta.runtime import images_per_pass


@dataclass(frozen=True)
class Pool:
    """Every real image as one candidate anchor (a 1×1 patch), with what the teacher says of it.

    Attributes:
        images: ``(n, 3, s, s)`` uint8.
        labels: ``(n,)`` int64.
        features: ``(n, d)`` float32, penultimate features φ, as given.
        confidence: ``(n,)`` float32, the teacher's probability of the true class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor
    confidence: torch.Tensor
    _kept: dict[Hashable, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def grey(self) -> bool:
        """Whether no image has any colour."""
        first = self.images[:, :1]
        return bool((self.images == first).all())

    def once(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what ``compute`` gives for these real images, computed the first time only."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def members(self, label: int) -> torch.Tensor:
        """Return the indices ``(m,)`` of the images of a class."""
        return self.once(label, lambda: (self.labels == label).nonzero().flatten())

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images ``(..., 3, s, s)`` in [0, 1] for indices of any shape."""
        return self.images[indices.cpu()].float() / 255


@torch.no_grad()
def build_pool(images: ImageSet, teacher: Classifier) -> Pool:
    """Return the pool of a training set under a frozen teacher."""
    device = teacher.mean.device
    features, confidence = [], []
    batch_size = images_per_pass(images.images.shape[-1])
    batches = range(0, len(images), batch_size)
    for begin in track(batches, "pool: real features", len(batches)):
        part = slice(begin, begin + batch_size)
        feature = teacher.features(images.images[part].to(device).float() / 255)
        probability = teacher.head(feature).softmax(dim=1).cpu()
        features.append(feature.cpu())
        confidence.append(probability.gather(1, images.labels[part, None]).flatten())
    return Pool(images.images, images.labels, torch.cat(features), torch.cat(confidence))
