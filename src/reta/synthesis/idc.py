"""IDC: several small images in one, matched on networks trained on real images.

Kim et al., *Dataset Condensation via Efficient Synthetic-Data Parameterization*, ICML 2022.

What is new against DC: each image is a grid of ``factor`` × ``factor`` small ones, which a network
sees enlarged (multi-formation), so that as many bytes hold more images; networks are trained on
real images instead of synthetic ones; and gradients are compared by their squared distance.

Official settings (snu-mllab/Efficient-Dataset-Condensation, CIFAR-10): 2,000 networks with 100
matches each, between which the network learns 2,000 real images (batches of 64, SGD 0.01, momentum
0.9, weight decay 5e-4, CutMix half of the time); factor 2; the gradients of the convolutions alone;
SGD on pixels in [0, 1], learning rate 0.005 · ipc / 10, momentum 0.5; 64 real images of each class.

Ours: all classes of a match make one step on the pixels instead of one each; below effort paper
ten matches with each network and 128 real images between them. **The distilled set holds the
grids**: students and the committee see random crops of them, as of any other image, while the
paper's students see the enlarged cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F

from reta.data.augment import cutmix, random_mix
from reta.errors import UsageError
from reta.models import Classifier
from reta.runtime import random_generator
from reta.synthesis.bilevel import Canvas, Learner
from reta.synthesis.coreset import random_order
from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.dc import GradientMatching
from reta.synthesis.engine import Work
from reta.synthesis.pool import Pool
from reta.synthesis.start import Beginning, pick


def cells(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the cells of images, enlarged: multi-formation.

    A side that the factor does not divide is filled up with grey.

    Args:
        images: ``(n, 3, s, s)``.
        factor: cells along a side.

    Returns:
        ``(n · factor², 3, s, s)``, the cells of an image one after the other, row by row.
    """
    size = images.shape[-1]
    side = -(-size // factor)
    rest = side * factor - size
    padded = F.pad(images, (0, rest, 0, rest), value=0.5)
    grid = padded.unflatten(3, (factor, side)).unflatten(2, (factor, side))
    small = grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (n · factor², 3, side, side)
    return F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Collage:
    """Random real images, made small, side by side: what IDC starts from.

    Attributes:
        factor: images along a side.
    """

    factor: int = 2

    def __call__(
        self, pool: Pool, teacher: Classifier, labels: Sequence[int], ipc: int, seed: int
    ) -> Beginning:
        """Return collages of the first images of a class in random order."""
        size, count = pool.image_size, ipc * self.factor**2
        side = -(-size // self.factor)
        columns = []
        for label in labels:
            images = pool.pixels(pick(random_order(pool, label, seed), count, label))
            small = F.interpolate(images, size=(side, side), mode="area")
            grid = small.unflatten(0, (ipc, self.factor, self.factor)).permute(0, 3, 1, 4, 2, 5)
            columns.append(grid.flatten(4, 5).flatten(2, 3)[..., :size, :size])
        return Beginning(torch.stack(columns, dim=1), None)


@dataclass(frozen=True)
class MultiFormation(GradientMatching):
    """Gradient matching of images that hold several small ones.

    Attributes:
        factor: small images along a side; that of the start.
        metric: of gradients: squared or absolute differences, summed.
        lesson: real images the network learns between two matches.
        lesson_batch: real images in one of its steps.
        most: small images of a class in a match, at most; random ones of them.
    """

    steps: int = 2_000
    learning_rate: float = 0.005
    batch: int = 64
    crop: tuple[float, float] | None = (0.6, 1.0)
    matches: int | None = 100
    network_momentum: float = 0.9
    factor: int = 2
    metric: Literal["mse", "l1"] = "mse"
    lesson: int = 2_000
    lesson_batch: int = 64
    most: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise UsageError(f"engine.factor is {self.factor}; give at least 1")

    def scaled(self, share: float) -> Self:
        """Return the method with a share of its networks; below 1 with far fewer matches too."""
        less = super().scaled(share)
        return less if share == 1 else replace(less, matches=10, lesson=128)

    def canvas(self, work: Work) -> Canvas:
        """Return what is painted on, in pixels of [0, 1]."""
        rate = self.learning_rate * work.settings.ipc / 10
        return Canvas(work, rate, self.momentum, normalised=False)

    def learner(self, work: Work, number: int) -> Learner:
        """Return a new network with its SGD."""
        network = self.network(work, "dc", number)
        return Learner(network, self.network_rate, self.network_momentum, 5e-4)

    def matched(self, extent: Extent) -> tuple[int, int]:
        """Return how many real and synthetic images of a class are in a match."""
        real, synthetic = super().matched(extent)
        return min(self.most, real), min(self.most, synthetic * self.factor**2)

    def lesson_passes(self, extent: Extent, times: int) -> Forwards:
        """Return the passes of so many lessons."""
        images = min(self.lesson, extent.real)
        batch = min(self.lesson_batch, images)
        return Forwards("learned", batch, times * images / batch)

    def decode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the enlarged cells of the images of a class."""
        return cells(images, self.factor)

    def augmented(
        self, work: Work, step: int, label: int, *groups: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return groups of images of one class under one view, no more than ``most`` of each."""
        some = []
        for group in groups:
            rng = random_generator(work.settings.seed, "idc", label, step)
            order = torch.from_numpy(rng.permutation(len(group))[: self.most])
            some.append(group if len(group) <= self.most else group[order.to(group.device)])
        return super().augmented(work, step, label, *some)

    def distance(
        self, real: Sequence[torch.Tensor], synthetic: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the distance of the gradients at the convolutions."""
        gaps = [a - b for a, b in zip(real, synthetic, strict=True) if a.ndim == 4]
        each = [gap.square().sum() if self.metric == "mse" else gap.abs().sum() for gap in gaps]
        return torch.stack(each).sum()

    def teach(self, work: Work, canvas: Canvas, learner: Learner, index: int) -> None:
        """Train the network on some real images of the block's classes, half of them mixed."""
        seed, pool = work.settings.seed, work.pool
        members = torch.cat([pool.members(label) for label in work.labels])
        counts = torch.tensor([len(pool.members(label)) for label in work.labels])
        labels = torch.arange(len(work.labels)).repeat_interleave(counts)
        order = random_generator(seed, "idc", "lesson", index).permutation(len(members))
        for turn, chosen in enumerate(
            torch.from_numpy(order[: self.lesson]).split(self.lesson_batch)
        ):
            key = ("idc", "lesson", index, turn)
            images = self.moved(work, pool.pixels(members[chosen]).to(work.device), *key)
            own = labels[chosen].to(work.device)
            rng = random_generator(seed, *key, "mix")
            if rng.random() >= 0.5:
                learner.learn(images, own)
                continue
            size = images.shape[-1]
            mix = random_mix(rng, len(images), size, len(images))
            partners = mix.partners.to(work.device)
            kept = 1 - (mix.boxes[0, 2] * mix.boxes[0, 3]).item() / size**2
            mixed = cutmix(images, images[partners], mix.boxes)

            def loss(
                part: slice,
                mixed: torch.Tensor = mixed,
                targets: Sequence[torch.Tensor] = (own, own[partners]),
                kept: float = kept,
            ) -> torch.Tensor:
                logits = learner.network(mixed[part])
                first, second = (F.cross_entropy(logits, target[part]) for target in targets)
                return kept * first + (1 - kept) * second

            learner.descend(loss, len(mixed))
