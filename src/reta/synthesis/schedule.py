"""How the optimisation budget is spent: blocks of steps, their resolutions, the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reta.errors import UsageError


@dataclass(frozen=True)
class Block:
    """Consecutive steps at one resolution, followed by a connection unless it is the last."""

    steps: int
    size: int


@dataclass(frozen=True)
class Schedule:
    """B steps of Adam on the pixels, cut into k + 1 blocks (paper, section 3).

    Attributes:
        steps: B, all blocks together.
        connections: k, how often a real image is connected in between.
        learning_rate: of Adam, in standard deviations of the data per step.
        betas: decay rates of Adam's moments; the moments start anew in each block.
        low_resolution: share of the full side at which every other block works when images are
            larger than 64 px (FADRM: 200 of 224); smaller images keep their size.
    """

    steps: int = 2000
    connections: int = 3
    learning_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    low_resolution: float = 200 / 224

    def __post_init__(self) -> None:
        if self.connections < 0 or self.steps <= self.connections:
            raise UsageError(
                f"{self.steps} steps cannot be cut into {self.connections + 1} blocks; "
                "give more steps or fewer connections"
            )

    def blocks(self, image_size: int) -> list[Block]:
        """Return the blocks: ⌊B/(k+1)⌋ steps each, the last takes the rest at full size."""
        count = self.connections + 1
        length = self.steps // count
        low = round(image_size * self.low_resolution) if image_size > 64 else image_size
        sizes = [image_size if (count - 1 - index) % 2 == 0 else low for index in range(count)]
        lengths = [length] * (count - 1) + [self.steps - length * (count - 1)]
        return [Block(steps, size) for steps, size in zip(lengths, sizes, strict=True)]

    def active(self, step: int, ipc: int) -> int:
        """Return how many images of each class are optimised at a step: the first ones."""
        return ipc

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: one cosine from full to zero over all B steps."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
