"""The images of a block of classes while they are made, and what teachers see of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from reta.errors import DivergedError
from reta.models import Classifier
from reta.synthesis.batches import Batches
from reta.synthesis.connection import resample
from reta.synthesis.embedding import Embedding, embed
from reta.synthesis.packing import Packing
from reta.synthesis.probes import Probe

T = TypeVar("T")


class Canvas:
    """Pixels, and the teachers that look at them.

    Attributes:
        pixels: ``(ipc, classes, channels, D, D)``: the first axis counts BN groups of one image per
            class. They are kept in units of the data's standard deviation, in which the learning
            rate is given. Grey images have one channel, because a teacher that never saw a colour
            cannot tell that a colour is wrong.
        unit: ``(channels, 1, 1)``, that deviation.
        probes: the teachers; the first one gives the features φ.
        batches: how images are cut into BN groups.
        packing: how many groups share a forward pass.
        image_size: of the finished images.
    """

    def __init__(
        self,
        images: torch.Tensor,
        probes: Sequence[Probe],
        batches: Batches,
        packing: Packing,
        grey: bool,
    ) -> None:
        channels = 1 if grey else 3
        first = probes[0].source
        self.unit = first.std.squeeze(0)[:channels]
        self.pixels = images[:, :, :channels].to(first.mean.device) / self.unit
        self.probes, self.batches, self.packing = list(probes), batches, packing
        self.image_size = images.shape[-1]

    @property
    def packs(self) -> list[slice]:
        """Images of each class that share a forward pass."""
        return self.packing.packs(self.batches.ipc)

    def shown(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels as images ``(ipc, classes, 3, D, D)`` in [0, 1]."""
        return (pixels * self.unit).expand(-1, -1, 3, -1, -1)

    def resized(self, size: int) -> torch.Tensor:
        """Return the pixels at another resolution."""
        ipc, classes = self.pixels.shape[:2]
        return resample(self.pixels.flatten(0, 1), size).view(ipc, classes, -1, size, size)

    def frame(self) -> torch.Tensor:
        """Return the images as they would be kept, ``(classes, ipc, 3, s, s)`` uint8."""
        images = self.shown(self.resized(self.image_size)).clamp(0, 1)
        return (images * 255).round().to(torch.uint8).transpose(0, 1).contiguous().cpu()

    def take(self, images: torch.Tensor) -> None:
        """Take the pixels of images ``(ipc, classes, 3, D, D)``."""
        self.pixels = images[:, :, : len(self.unit)] / self.unit

    @torch.no_grad()
    def bound(self) -> None:
        """Bring every pixel back into [0, 1], in place."""
        self.pixels.copy_(torch.minimum(self.pixels.clamp_(min=0), 1 / self.unit))

    def packed(self, kind: tuple[Any, ...], work: Callable[[], T]) -> T:
        """Return what some work gives, in packs that fit and change no byte, see `Packing`."""
        side, whole = self.pixels.shape[-1], self.batches.kind == "class"
        group = f"{self.batches.images} images of {side} px"
        return self.packing.do((*kind, side), work, group, whole)

    def eyes(self, kind: Embedding) -> list[Classifier]:
        """Return the teachers that look; the fast ones do not show what is between their layers."""
        return [one.source if kind == "middle" else one.teacher for one in self.probes]

    def reach(
        self, pack: slice, turn: int = 0, kind: Embedding = "features"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixels of a pack as a leaf, and its images, as they are, as a teacher sees."""
        leaf = self.pixels.detach()[pack].requires_grad_()
        images = self.shown(leaf).flatten(0, 1)
        return leaf, embed(images, self.eyes(kind)[turn:], kind)

    def by_class(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the features of all packs as ``(classes, ipc, d)``, without a graph.

        Raises:
            DivergedError: if one is NaN or infinite.
        """
        features = torch.cat(parts).detach()
        if not torch.isfinite(features).all():
            raise DivergedError(
                f"the features of {self.probes[0].source.name} became NaN or infinite; "
                "lower schedule.learning_rate, or check that the teacher is trained"
            )
        ipc, classes = self.pixels.shape[:2]
        return features.view(ipc, classes, -1).transpose(0, 1)

    @torch.no_grad()
    def features(self, turn: int = 0, kind: Embedding = "features") -> torch.Tensor:
        """Return φ of all images as they are, ``(classes, ipc, d)``."""
        return self.packed(
            ("look", turn, kind),
            lambda: self.by_class([self.reach(pack, turn, kind)[1] for pack in self.packs]),
        )
