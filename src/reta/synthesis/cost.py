"""What a method computes besides the steps of the decoupled loop, counted for `reta.planning`.

A part of a recipe that looks at real images before the first step has a method ``looks``, an engine
``costs``. Both count passes of images through a network; a plan times one pass of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Kind = Literal["seen", "measured", "learned", "unrolled"]


@dataclass(frozen=True)
class Extent:
    """How large a block of classes is, and what is asked of it.

    Attributes:
        classes: in the block.
        ipc: images per class.
        real: training images of all classes.
        per_class: training images of a class, on average.
        teachers: of the recipe.
        image_size: side in pixels.
    """

    classes: int
    ipc: int
    real: int
    per_class: int
    teachers: int
    image_size: int


@dataclass(frozen=True)
class Forwards:
    """Forwards of images through a network.

    Attributes:
        kind: ``seen``: their answers; ``measured``: also the statistics of all layers;
            ``learned``: answers and a gradient; ``unrolled``: and the gradient of that gradient.
        images: in a pass; fewer share one where they do not fit.
        count: how many passes; a part of one if it is not full.
    """

    kind: Kind
    images: int
    count: float = 1.0

    @property
    def total(self) -> float:
        """Images, each as often as it passes."""
        return self.images * self.count


@dataclass(frozen=True)
class Costs:
    """What an engine computes.

    Attributes:
        unit: of the groundwork.
        block: all steps on a block of classes.
        states: how often the weights of its network are kept in the file of a unit.
        held: passes of a step whose activations are in memory at the same time.
    """

    block: Sequence[Forwards]
    unit: Sequence[Forwards] = ()
    states: int = 0
    held: int = 1


@runtime_checkable
class Looking(Protocol):
    """A part of a recipe that asks the teachers about images before the first step."""

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes for a block of classes, those of all teachers together."""
        ...
