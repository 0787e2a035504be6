"""The real images of each class, seen once by the frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from reta.data.images import ImageSet
from reta.models import Classifier
from reta.progress import track
from reta.runtime import images_per_pass


@dataclass(frozen=True)
class Pool:
    """Every real image as one candidate anchor (a 1×1 patch), with what the teacher says of it.

    Attributes:
        images: the real images, held in memory or decoded when asked for.
        features: ``(n, d)`` float32, penultimate features φ, as given.
        confidence: ``(n,)`` float32, the teacher's probability of the true class.
        grey: whether no image has any colour.
    """

    images: ImageSet
    features: torch.Tensor
    confidence: torch.Tensor
    grey: bool
    _kept: dict[Hashable, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def labels(self) -> torch.Tensor:
        """The class ``(n,)`` int64 of every image."""
        return self.images.labels

    @property
    def image_size(self) -> int:
        """The side of every image, in pixels."""
        return self.images.size

    def once(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what ``compute`` gives for these real images, computed the first time only."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def members(self, label: int) -> torch.Tensor:
        """Return the indices ``(m,)`` of the images of a class."""
        return self.once(label, lambda: self.images.of_class(label))

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images ``(..., 3, s, s)`` in [0, 1] for indices of any shape."""
        return self.images.pixels(indices).float() / 255


@torch.no_grad()
def build_pool(images: ImageSet, teacher: Classifier) -> Pool:
    """Return the pool of a training set under a frozen teacher."""
    device = teacher.mean.device
    features, confidence, grey = [], [], True
    parts = torch.arange(len(images)).split(images_per_pass(images.size))
    batches = zip(parts, images.batches(parts), strict=True)
    for part, pixels in track(batches, "pool: real features", len(parts)):
        grey = grey and bool((pixels == pixels[:, :1]).all())
        feature = teacher.features(pixels.to(device).float() / 255)
        probability = teacher.head(feature).softmax(dim=1).cpu()
        features.append(feature.cpu())
        confidence.append(probability.gather(1, images.labels[part][:, None]).flatten())
    return Pool(images, torch.cat(features), torch.cat(confidence), grey)
