"""The real images of each class, seen once by the frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from reta.data.sources import ImageSet
from reta.models import Classifier
from reta.progress import track
from reta.runtime import images_per_pass
from reta.synthesis.connection import resample
from reta.synthesis.retrieval import edge_complexity


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
    _members: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _complexity: dict[tuple[int, int, float], torch.Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def grey(self) -> bool:
        """Whether no image has any colour."""
        first = self.images[:, :1]
        return bool((self.images == first).all())

    def members(self, label: int) -> torch.Tensor:
        """Return the indices ``(m,)`` of the images of a class."""
        if label not in self._members:
            self._members[label] = (self.labels == label).nonzero().flatten()
        return self._members[label]

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images ``(..., 3, s, s)`` in [0, 1] for indices of any shape."""
        return self.images[indices.cpu()].float() / 255

    def complexity(self, label: int, size: int, sigma: float) -> torch.Tensor:
        """Return c(o) ``(m,)`` of a class's images at a resolution; computed once."""
        key = (label, size, sigma)
        if key not in self._complexity:
            parts = [  # some at a time: the blur needs ten times the memory of its images
                edge_complexity(resample(self.pixels(part), size), sigma)
                for part in self.members(label).split(100)
            ]
            self._complexity[key] = torch.cat(parts)
        return self._complexity[key]


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
