"""How the images of a block of classes are cut into BN groups, and groups into forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

GROUP = 100  # images in a group that holds all images of its classes, as far as they fit


@dataclass(frozen=True)
class Batches:
    """The BN groups of a block of classes.

    Pixels are ``(ipc, classes, …)``. A mixed group is one image of each class, so a row of them; a
    group of whole classes is some columns.

    Attributes:
        kind: what a group is, see `Matching`.
        classes: in the block.
        ipc: images per class.
    """

    kind: Literal["mixed", "class"]
    classes: int
    ipc: int

    @property
    def together(self) -> int:
        """Classes in a group."""
        whole = max(1, GROUP // self.ipc)
        return min(whole, self.classes) if self.kind == "class" else self.classes

    @property
    def images(self) -> int:
        """Images in a group, at most."""
        return self.together * (self.ipc if self.kind == "class" else 1)

    @property
    def count(self) -> int:
        """How many groups there are."""
        return -(-self.classes // self.together) if self.kind == "class" else self.ipc

    def passes(self, active: int, at_once: int) -> list[tuple[tuple[slice, ...], range]]:
        """Return where in the pixels the images of each pass lie, and which groups they are.

        Args:
            active: images of each class that take part, the first ones.
            at_once: mixed groups that share a pass; of whole classes each has its own.
        """
        if self.kind == "class":
            k = self.together
            return [
                ((slice(active), slice(group * k, (group + 1) * k)), range(group, group + 1))
                for group in range(self.count)
            ]
        spans = [range(i, min(i + at_once, active)) for i in range(0, active, at_once)]
        return [((slice(span.start, span.stop),), span) for span in spans]

    def grouped(
        self, images: torch.Tensor, where: tuple[slice, ...], targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of a pass as groups ``(g, n, …)``, and the classes ``(n,)`` of each.

        Args:
            images: at ``where`` in the pixels.
            where: as `passes` says.
            targets: ``(classes,)``, the classes of the block.
        """
        if self.kind == "mixed":
            return images, targets
        # One group, class after class.
        labels = targets[where[1]].repeat_interleave(len(images))
        return images.transpose(0, 1).flatten(0, 1).unsqueeze(0), labels
