"""What the methods share that learn pixels by how networks of their own react to them.

DM, DC, IDC and MTT: dataset condensation's ConvNet, freshly initialised again and again; one
augmentation for real and synthetic images alike; SGD on the pixels.

Ours, for all of them: pixels are clipped to the valid range after every step, because they are
kept as 8-bit images; the augmentation is a crop, a mirror image and a circular shift (the papers'
also turns, cuts out and changes colours); below effort paper networks and batches of real images
are a quarter as large, so that it runs on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from reta.checkpoint import State, optimiser_tensors, restore_optimiser
from reta.data.augment import Views, random_views, render
from reta.errors import DivergedError, UsageError
from reta.memory import Halving, descend
from reta.models import Classifier, instance_convnet
from reta.progress import track
from reta.runtime import Stopwatch, random_generator, torch_seed
from reta.synthesis.engine import Recovered, Tensors, Work
from reta.tracking import note

_FRAMES = 4  # pictures of the way, besides the start


@dataclass(frozen=True)
class Bilevel:
    """The settings such methods have in common.

    Attributes:
        steps: see each method.
        learning_rate: of SGD on the pixels.
        momentum: of SGD on the pixels.
        batch: real images of each class in a step, at most.
        width: channels of the ConvNet.
        crop: least and greatest share of the area that the augmentation keeps; None: no
            augmentation.
        shift: greatest shift of the augmentation, as a share of the side.
    """

    steps: int
    learning_rate: float
    momentum: float = 0.5
    batch: int = 256
    width: int = 128
    crop: tuple[float, float] | None = (0.6, 1.0)
    shift: float = 0.125

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "width"):
            if getattr(self, name) < 1:
                raise UsageError(f"engine.{name} is {getattr(self, name)}; give at least 1")

    @property
    def together(self) -> bool:
        """Whether all classes are needed in one block."""
        return True

    @property
    def groundwork(self) -> int:
        """Units of work before the first block."""
        return 0

    def rehearsal(self, classes: int, image_size: int) -> nn.Module:
        """Return a network like those the engine uses, for a plan."""
        return instance_convnet(classes, image_size, width=self.width)

    def given(self) -> Mapping[str, str]:
        """Return the hashes of the files the engine is given: none."""
        return {}

    def scaled(self, share: float) -> Self:
        """Return the method with a share of its steps; below 1 with a quarter of the sizes too."""
        if share == 1:
            return self
        steps = max(1, round(self.steps * share))
        return replace(self, steps=steps, batch=-(-self.batch // 4), width=-(-self.width // 4))

    def lay(self, index: int, work: Work) -> Tensors:
        """Do a unit of the groundwork: there is none."""
        raise NotImplementedError

    def network(self, work: Work, *key: int | str) -> Classifier:
        """Return a freshly initialised network for the classes of a block, in training mode."""
        teacher = work.committee[0]
        made = instance_convnet(
            len(work.labels),
            work.pool.image_size,
            width=self.width,
            mean=teacher.mean.flatten().tolist(),
            std=teacher.std.flatten().tolist(),
            seed=torch_seed(work.settings.seed, "bilevel", *key),
        )
        return made.to(work.device).train()

    def augmented(
        self, work: Work, step: int, label: int, *groups: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return groups of images ``(n, 3, s, s)`` of one class under one and the same view.

        Siamese augmentation (Zhao and Bilen, ICML 2021): what the views of real and of synthetic
        images differ in would be learned as if it were a difference of the images.
        """
        if self.crop is None:
            return list(groups)
        size = work.pool.image_size
        view = self._views(work, 1, self.crop, "siamese", label, step)
        return [render(group[None], view, size)[0] for group in groups]

    def moved(self, work: Work, images: torch.Tensor, *key: int | str) -> torch.Tensor:
        """Return images ``(n, 3, s, s)``, each under a view of its own, as networks learn them."""
        if self.crop is None:
            return images
        views = self._views(work, len(images), self.crop, *key)
        return render(images, views, work.pool.image_size)

    def _views(self, work: Work, count: int, crop: tuple[float, float], *key: int | str) -> Views:
        size = work.pool.image_size
        return random_views(
            random_generator(work.settings.seed, *key),
            count,
            size,
            scale=crop,
            flip=work.settings.flip,
            shift=round(self.shift * size),
        )

    def real(self, work: Work, step: int, label: int) -> torch.Tensor:
        """Return random real images ``(n, 3, s, s)`` of a class."""
        members = work.pool.members(label)
        rng = random_generator(work.settings.seed, "real", label, step)
        count = min(self.batch, len(members))
        return work.pool.pixels(members[rng.permutation(len(members))[:count]]).to(work.device)


class Learner:
    """A network with its SGD, whose state can be kept between two steps.

    Attributes:
        network: in training mode.
    """

    def __init__(
        self, network: Classifier, rate: float, momentum: float = 0.0, decay: float = 0.0
    ) -> None:
        self._rate, self._momentum, self._decay = rate, momentum, decay
        self._halving = Halving("images of a training batch")
        self.renew(network)

    def renew(self, network: Classifier) -> None:
        """Go on with another network, which nothing was learned with yet."""
        self.network = network
        self._optimiser = torch.optim.SGD(
            network.parameters(), self._rate, self._momentum, weight_decay=self._decay
        )

    def learn(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take one step on the cross-entropy of images ``(n, 3, s, s)``."""

        def loss(part: slice) -> torch.Tensor:
            return F.cross_entropy(self.network(images[part]), labels[part])

        self.descend(loss, len(images))

    def descend(self, loss: Callable[[slice], torch.Tensor], count: int) -> None:
        """Take one step on the mean loss of a batch, see `mean_gradients`."""
        descend(self._optimiser, loss, count, self._halving)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and momenta."""
        weights = {f"weight.{name}": value for name, value in self.network.state_dict().items()}
        return weights | optimiser_tensors(self._optimiser)

    def restore(self, tensors: Tensors) -> None:
        """Put back what `tensors` returned."""
        self.network.load_state_dict(without("weight.", tensors))
        restore_optimiser(self._optimiser, tensors)


def without(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


class Canvas:
    """The synthetic images of a block while they are learned, and all that is kept of the way.

    Attributes:
        pixels: ``(classes, ipc, 3, s, s)`` in units of ``unit``; one channel where all real
            images are grey, because a network that never saw a colour cannot tell it is wrong.
        unit: what a pixel is measured in, ``(channels, 1, 1)``.
    """

    def __init__(
        self, work: Work, rate: float, momentum: float, *, normalised: bool = True
    ) -> None:
        """Begin.

        Args:
            work: the block.
            rate: of SGD.
            momentum: of SGD.
            normalised: whether the rate is meant for pixels in standard deviations of the data,
                or for pixels in [0, 1].
        """
        channels = 1 if work.pool.grey else 3
        std = work.committee[0].std.squeeze(0)[:channels]
        self.unit = std if normalised else torch.ones_like(std)
        beginning = work.begin()
        images = beginning.images.transpose(0, 1)[:, :, :channels]
        self.pixels = (images.to(work.device) / self.unit).contiguous().requires_grad_()
        self._anchors = [] if beginning.anchors is None else [beginning.anchors.T.contiguous()]
        self._work = work
        rate *= work.checkpoint.caution
        self._optimiser = torch.optim.SGD([self.pixels], rate, momentum=momentum)
        self._steps: list[dict[str, float]] = []
        self._frames = [self._frame()]

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels ``(…, channels, s, s)`` as images ``(…, 3, s, s)`` in [0, 1]."""
        return (pixels * self.unit).expand(*pixels.shape[:-3], 3, -1, -1)

    def descend(self, gradient: torch.Tensor) -> None:
        """Take one step on the pixels, and keep them valid."""
        self.pixels.grad = gradient
        self._optimiser.step()
        with torch.no_grad():
            self.pixels.copy_(torch.minimum(self.pixels.clamp(min=0), 1 / self.unit))

    def learn(
        self,
        steps: int,
        step: Callable[[int], Mapping[str, torch.Tensor | float]],
        kept: Callable[[], Tensors] = dict,
        restore: Callable[[Tensors], None] = lambda tensors: None,
    ) -> Recovered:
        """Take all steps, those that an interrupted process took already left out.

        Args:
            steps: how many.
            step: takes the step of a number, `descend` included, and returns its losses. It does
                not call `interruption.check` after it changed anything.
            kept: returns what decides further steps besides the pixels.
            restore: puts it back.

        Raises:
            DivergedError: if a loss becomes NaN or infinite.
        """
        watch, checkpoint = Stopwatch(), self._work.checkpoint
        begun, earlier = self._restore(checkpoint.load(), restore)
        done = begun
        log_every = max(1, steps // 100)
        marks = {-(-steps * part // _FRAMES) for part in range(1, _FRAMES + 1)}

        def state() -> State:
            return self._state(done, earlier + watch.seconds, kept())

        with checkpoint.keeping(state) as offer:
            for index in track(range(begun, steps), "recover", steps - begun):
                offer()
                row = step(index)
                if index % log_every == 0 or index == steps - 1:
                    self._log(index, row)
                if index + 1 in marks:
                    self._frames.append(self._frame())
                done = index + 1
        return Recovered(
            images=self._frames[-1],
            frames=self._frames,
            anchors=self._anchors,
            steps=self._steps,
            connections=[],
            seconds=earlier + watch.seconds,
            images_per_pass=self._work.settings.images_per_pass,
        )

    def _log(self, index: int, row: Mapping[str, torch.Tensor | float]) -> None:
        values = {name: float(value) for name, value in row.items()}
        if not all(map(math.isfinite, values.values())):
            raise DivergedError(
                f"the loss became {values} at step {index}; lower the learning rate"
            )
        self._steps.append({"step": index, **values})
        note(index, values, "recover")

    def _frame(self) -> torch.Tensor:
        images = self.images(self.pixels.detach()).clamp(0, 1)
        return (images * 255).round().to(torch.uint8).contiguous().cpu()

    def _state(self, done: int, seconds: float, kept: Tensors) -> State:
        tensors = {"pixels": self.pixels.detach(), **optimiser_tensors(self._optimiser)}
        tensors |= {f"frame.{number}": frame for number, frame in enumerate(self._frames)}
        tensors |= {f"kept.{name}": value for name, value in kept.items()}
        return State(tensors, {"done": done, "steps": self._steps, "seconds": seconds})

    def _restore(
        self, state: State | None, restore: Callable[[Tensors], None]
    ) -> tuple[int, float]:
        """Go back to where the work was interrupted; return the steps done and their seconds."""
        if state is None:
            return 0, 0.0
        tensors, facts = state.tensors, state.facts
        with torch.no_grad():
            self.pixels.copy_(tensors["pixels"])
        restore_optimiser(self._optimiser, tensors)
        count = sum(name.startswith("frame.") for name in tensors)
        self._frames = [tensors[f"frame.{number}"] for number in range(count)]
        self._steps = facts["steps"]
        if kept := without("kept.", tensors):
            restore(kept)
        return facts["done"], float(facts["seconds"])
