"""The real images of each class, seen once by the frozen teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from reta.data.images import ImageSet
from reta.memory import Passes
from reta.models import Classifier
from reta.progress import track
from reta.runtime import images_per_pass


@dataclass(frozen=True)
class Pool:
    """Every real image as one candidate anchor (a 1×1 patch), with what the teacher says of it.

    Attributes:
        images: the real images, held in memory or decoded when asked for.
        features: ``(n, d)`` penultimate features φ, as given; indexed by positions they are
            float32.
        confidence: ``(n,)`` float32, the teacher's probability of the true class.
        grey: whether no image has any colour.
    """

    images: ImageSet
    features: torch.Tensor | MappedFeatures
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

    @cached_property
    def knowledge(self) -> float:
        """Share of what there is to know of these images' classes that the teacher knows.

        1 − CE / ln C, with its cross-entropy on them: 0 for a guess (or worse), 1 for certainty;
        McFadden's R² against an even guess. It counts how sure the teacher is, which accuracy does
        not, and means the same for ten classes and a thousand.
        """
        classes = len(self.images.classes)
        if classes < 2:
            return 1.0
        surprise = -self.confidence.double().clamp(min=1e-12).log().mean()
        return max(0.0, 1 - float(surprise) / math.log(classes))

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images ``(..., 3, s, s)`` in [0, 1] for indices of any shape."""
        return self.images.pixels(indices).float() / 255


class MappedFeatures:
    """Features in files that are mapped into memory: read from the disk where they are asked for.

    Indexed by a tensor of positions, like one tensor of all of them; gives float32.
    """

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = list(parts)
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    @property
    def shape(self) -> tuple[int, int]:
        """How many images, and how long the features."""
        return int(self._ends[-1]), int(self._parts[0].shape[1])

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        """Return features ``(..., d)`` for indices of any shape."""
        flat = indices.flatten().cpu()
        found = torch.empty(len(flat), self.shape[1])
        places = torch.searchsorted(self._ends, flat, right=True)
        for place in places.unique().tolist():
            own = places == place
            part = self._parts[place]
            start = int(self._ends[place]) - len(part)
            found[own] = part[flat[own] - start].float()
        return found.view(*indices.shape, self.shape[1])


@torch.no_grad()
def look(
    images: ImageSet, teacher: Classifier, span: range, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], bool]:
    """Return what a frozen teacher says of some consecutive images, decoding each once.

    Args:
        images: the training images.
        teacher: frozen.
        span: positions of the images.
        dtype: of the features that are kept.

    Returns:
        ``features`` (m, d) and ``confidence`` (m,) float32, see `Pool`; and whether these images
        are all grey.
    """
    device = teacher.mean.device
    # Filled in place: small tensors kept between large passing ones would scatter the heap, and
    # memory would grow by several times what is kept.
    kept: dict[str, torch.Tensor] = {}
    grey = True
    passes = Passes(images.size)

    def seen(pixels: torch.Tensor) -> list[torch.Tensor]:
        feature = teacher.features(pixels.to(device).float() / 255)
        return [feature.to(dtype).cpu(), teacher.head(feature).softmax(dim=1).cpu()]

    parts = torch.arange(span.start, span.stop).split(images_per_pass(images.size))
    batches = zip(parts, images.batches(parts), strict=True)
    for part, pixels in track(batches, "pool: real features", len(parts)):
        grey = grey and bool((pixels == pixels[:, :1]).all())
        found = zip(*passes.of(seen, pixels), strict=True)
        feature, probability = (torch.cat(values) for values in found)
        if not kept:
            kept["features"] = torch.empty(len(span), feature.shape[1], dtype=dtype)
            kept["confidence"] = torch.empty(len(span), dtype=probability.dtype)
        place = part - span.start
        kept["features"][place] = feature
        kept["confidence"][place] = probability.gather(1, images.labels[part][:, None]).flatten()
    return kept, grey


def build_pool(images: ImageSet, teacher: Classifier) -> Pool:
    """Return the pool of a training set under a frozen teacher, held in memory."""
    seen, grey = look(images, teacher, range(len(images)))
    return Pool(images, seen["features"], seen["confidence"], grey)
