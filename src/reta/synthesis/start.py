"""Where synthetic images start: real images, a mosaic of real crops, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from reta.data.augment import random_views, render
from reta.memory import Passes
from reta.models import Classifier
from reta.progress import warn_once
from reta.runtime import random_generator
from reta.synthesis.coreset import ORDERS, Order, random_order
from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.pool import Pool


@dataclass(frozen=True)
class Beginning:
    """The images a block starts from.

    Attributes:
        images: ``(ipc, classes, 3, s, s)`` in [0, 1].
        anchors: ``(ipc, classes)`` pool indices of the real images they are, or None if they are
            no single real images.
    """

    images: torch.Tensor
    anchors: torch.Tensor | None


class Start(Protocol):
    """Says what the synthetic images of some classes start from."""

    def __call__(
        self, pool: Pool, teacher: Classifier, labels: Sequence[int], ipc: int, seed: int
    ) -> Beginning:
        """Return ``ipc`` images of each class, the same for the same seed in any block."""
        ...


def pick(ranked: torch.Tensor, count: int, label: int) -> torch.Tensor:
    """Return the first ``count`` of some ranked images, beginning again when they run out."""
    if len(ranked) < count:
        warn_once(f"class {label} has {len(ranked)} images, fewer than ipc {count}: some repeat")
    return ranked[torch.arange(count) % len(ranked)]


@dataclass(frozen=True)
class RealImages:
    """Whole real images.

    Attributes:
        order: which images of a class come first.
    """

    order: Order = "medium"

    def __call__(
        self, pool: Pool, teacher: Classifier, labels: Sequence[int], ipc: int, seed: int
    ) -> Beginning:
        """Return the first ``ipc`` images of each class."""
        order = ORDERS[self.order]
        anchors = [pick(order(pool, label, seed), ipc, label) for label in labels]
        indices = torch.stack(anchors, dim=1)  # (ipc, classes)
        return Beginning(pool.pixels(indices), indices)


@dataclass(frozen=True)
class LargestErrors:
    """The real images with the largest EL2N score, ‖p(x) − y‖₂.

    Source: "Deep Learning on a Data Diet" (NeurIPS 2021), which keeps them because they are what
    is still to be learned; of a few images per class they are the outliers. Ours: p is the first
    teacher's, fully trained, where the paper averages networks early in training.
    """

    @torch.no_grad()
    def __call__(
        self, pool: Pool, teacher: Classifier, labels: Sequence[int], ipc: int, seed: int
    ) -> Beginning:
        """Return the ``ipc`` images of each class that the teacher is most wrong about."""
        anchors = []
        for label in labels:
            members = pool.members(label)
            logits = teacher.head(pool.features[members].to(teacher.mean)).cpu()
            errors = logits.softmax(dim=1)
            errors[:, label] -= 1
            order = errors.norm(dim=1).argsort(descending=True, stable=True)
            anchors.append(pick(members[order], ipc, label))
        indices = torch.stack(anchors, dim=1)
        return Beginning(pool.pixels(indices), indices)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise with the mean and spread of the data, as SRe2L starts."""

    def __call__(
        self, pool: Pool, teacher: Classifier, labels: Sequence[int], ipc: int, seed: int
    ) -> Beginning:
        """Return independent noise images, clipped to the valid range."""
        shape = (3, pool.image_size, pool.image_size)
        draws = [
            [
                random_generator(seed, "start", label, index).standard_normal(shape)
                for label in labels
            ]
            for index in range(ipc)
        ]
        noise = torch.stack([torch.stack([torch.from_numpy(x) for x in row]) for row in draws])
        images = teacher.mean.cpu() + teacher.std.cpu() * noise.float()
        return Beginning(images.clamp(0, 1), None)


@dataclass(frozen=True)
class Mosaic:
    """RDED: the crops the teacher recognises best, stitched together.

    Attributes:
        factor: crops along each side of an image; None is 1 up to 64 px and 2 above.
        candidates: random real images considered for each class.
        crops: random crops of each candidate, of which the most recognisable is kept.
    """

    factor: int | None = None
    candidates: int = 300
    crops: int = 5

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that judging the crops takes, see `Looking`."""
        wanted = extent.ipc * self.side(extent.image_size) ** 2
        candidates = min(extent.per_class, max(self.candidates, wanted))
        return Forwards("seen", extent.classes * candidates * self.crops)

    def side(self, image_size: int) -> int:
        """Return how many crops lie along a side."""
        return self.factor or (1 if image_size <= 64 else 2)

    def __call__(
        self, pool: Pool, teacher: Classifier, labels: Sequence[int], ipc: int, seed: int
    ) -> Beginning:
        """Return mosaics; the lowest cross-entropy first."""
        factor = self.side(pool.image_size)
        mosaics = [self._mosaics(pool, teacher, label, ipc, factor, seed) for label in labels]
        return Beginning(torch.stack(mosaics, dim=1), None)

    def judge(
        self, teacher: Classifier, crops: torch.Tensor, label: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what decides between crops of an image, and between images; less is better."""
        passes, device = Passes(crops.shape[-1]), teacher.mean.device
        logits = torch.cat(passes.of(lambda part: teacher(part.to(device)).cpu(), crops))
        loss = F.cross_entropy(logits, torch.full((len(logits),), label), reduction="none")
        return loss, loss

    @torch.no_grad()
    def _mosaics(
        self, pool: Pool, teacher: Classifier, label: int, ipc: int, factor: int, seed: int
    ) -> torch.Tensor:
        size = pool.image_size
        side = size // factor
        chosen = random_order(pool, label, seed)[: max(self.candidates, ipc * factor**2)]
        rng = random_generator(seed, "mosaic", label)
        # Mirroring does not change how well a crop is recognised, so it is left to the student.
        views = random_views(
            rng, len(chosen) * self.crops, size, ratio=(1, 1), flip=False, out_size=side
        )
        crops = render(pool.pixels(chosen).repeat_interleave(self.crops, dim=0), views, side)
        # RDED judges a crop at its final scale, on black where its neighbours will be.
        padded = F.pad(crops, [(size - side) // 2, -(-(size - side) // 2)] * 2)
        within, between = (
            value.view(-1, self.crops) for value in self.judge(teacher, padded, label)
        )
        best = within.argmin(dim=1)
        values = between.gather(1, best[:, None]).flatten()
        order = pick(values.argsort(stable=True), ipc * factor**2, label)
        kept = crops.view(-1, self.crops, *crops.shape[1:])[order, best[order]]
        grid = kept.view(ipc, factor, factor, 3, side, side)
        image = grid.permute(0, 3, 1, 4, 2, 5).reshape(ipc, 3, factor * side, factor * side)
        return F.pad(image, [0, size - factor * side] * 2, mode="replicate")
