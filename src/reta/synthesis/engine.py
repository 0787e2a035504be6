"""What is given and taken when a block of classes is distilled, by the loop or by an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import nn

from reta.checkpoint import Checkpoint
from reta.models import Classifier
from reta.synthesis.cost import Costs, Extent
from reta.synthesis.pool import Pool
from reta.synthesis.start import Beginning, Start

Tensors: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know besides the recipe.

    Attributes:
        ipc: images per class.
        seed: of the run.
        flip: whether mirroring keeps the meaning of the images.
        images_per_pass: BN groups share a forward pass up to this many images. Statistics are
            taken per group, so this changes speed and memory: on a CPU no byte, see `Packing`; on
            a GPU results by rounding.
        compiled: have torch compile the teachers, see `CompiledProbe`.
    """

    ipc: int
    seed: int = 0
    flip: bool = True
    images_per_pass: int = 100
    compiled: bool = False


@dataclass(frozen=True)
class Recovered:
    """The synthetic images of a block of classes and how they came about.

    Attributes:
        images: ``(classes, ipc, 3, s, s)`` uint8.
        frames: the images at the start and after each block, each ``(classes, ipc, 3, s, s)``.
        anchors: pool indices ``(classes, ipc)`` of the start, if real, and of each connection.
        steps: losses by step, thinned to about a hundred rows.
        connections: what each connection chose and did.
        seconds: wall-clock time.
        images_per_pass: how many shared a forward pass at the end: fewer if memory ran out.
    """

    images: torch.Tensor
    frames: list[torch.Tensor]
    anchors: list[torch.Tensor]
    steps: list[dict[str, float]]
    connections: list[dict[str, float]]
    seconds: float
    images_per_pass: int


@dataclass(frozen=True)
class Work:
    """A block of classes to be distilled, and all there is to distil it with.

    Attributes:
        committee: frozen teachers.
        pool: all real images.
        labels: the classes of this block.
        settings: images per class, seed and the like.
        start: what the images start from.
        laid: what `Engine.lay` gave, in order.
        checkpoint: keeps the state of the work, so that it can be interrupted.
    """

    committee: Sequence[Classifier]
    pool: Pool
    labels: Sequence[int]
    settings: Settings
    start: Start
    laid: Sequence[Tensors] = ()
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @property
    def device(self) -> torch.device:
        """Where tensors are computed with."""
        return self.committee[0].mean.device

    def begin(self) -> Beginning:
        """Return what the images start from."""
        return self.start(
            self.pool, self.committee[0], self.labels, self.settings.ipc, self.settings.seed
        )


class Engine(Protocol):
    """Makes the images of a block of classes in a way of its own, instead of the decoupled loop.

    A frozen dataclass, whose fields are the settings of the method. Work that is interrupted and
    resumed must end with the same bytes: random draws are keyed, and the state is offered to
    `Work.checkpoint`.
    """

    @property
    def steps(self) -> int:
        """How many steps are taken on a block."""
        ...

    @property
    def together(self) -> bool:
        """Whether all classes are needed in one block, because a network learns to tell them."""
        ...

    @property
    def groundwork(self) -> int:
        """Units of work that are done once, before the first block; their tensors are kept."""
        ...

    def costs(self, extent: Extent) -> Costs:
        """Return what is computed, counted in passes through `rehearsal`'s network."""
        ...

    def rehearsal(self, classes: int, image_size: int) -> nn.Module | None:
        """Return a network like those the engine uses, for a plan; None where it is not ours."""
        ...

    def given(self) -> Mapping[str, str]:
        """Return the hashes of the files the engine is given: other files make other images."""
        ...

    def scaled(self, share: float) -> Engine:
        """Return the engine with a share of its budget; 1 is the paper's."""
        ...

    def lay(self, index: int, work: Work) -> Tensors:
        """Do one unit of the groundwork, on all classes."""
        ...

    def recover(self, work: Work) -> Recovered:
        """Distil a block."""
        ...
