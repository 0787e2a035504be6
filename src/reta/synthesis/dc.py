"""DC: synthetic images whose gradients are those of real ones (Zhao, Mopuri, Bilen, ICLR 2021).

With augmentation it is DSA (Zhao and Bilen, ICML 2021), which differs in nothing else.

Official settings (VICO-UoE/DatasetCondensation, main.py): 1,000 networks; with each of them T
matches, between which the network is trained on the synthetic images for ζ epochs: T, ζ = 1, 1 at
one image per class, 10, 50 at 10, 50, 10 at 50; SGD on normalised pixels, learning rate 0.1,
momentum 0.5; on the network 0.01, 0.5; 256 real images of each class.

Ours: T = ipc and ζ = 500 / ipc for other ipc; a start from random real images (the official one
is noise, "similar"); what `reta.synthesis.bilevel` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from reta.memory import Halving, mean_gradients
from reta.models import Classifier
from reta.runtime import random_generator
from reta.synthesis.bilevel import Bilevel, Canvas, Learner
from reta.synthesis.cost import Costs, Extent, Forwards
from reta.synthesis.engine import Recovered, Work

_EPSILON = 1e-6


def layer_distance(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Return Σᵢ (1 − cos(Aᵢ, Bᵢ)) over the output units i of one layer.

    Args:
        real: gradient A at the weights of the layer, ``(out, …)``.
        synthetic: gradient B.
    """
    real, synthetic = real.flatten(1), synthetic.flatten(1)
    norms = real.norm(dim=1) * synthetic.norm(dim=1)
    cosine: torch.Tensor = (real * synthetic).sum(1) / (norms + _EPSILON)
    return (1 - cosine).sum()


def weight_gradients(
    network: Classifier, images: torch.Tensor, position: int, *, create_graph: bool = False
) -> list[torch.Tensor]:
    """Return the gradients of the cross-entropy of images of one class at all parameters."""
    labels = torch.full((len(images),), position, device=images.device)
    loss = F.cross_entropy(network(images), labels)
    return list(torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph))


def mean_weight_gradients(
    network: Classifier, images: torch.Tensor, position: int
) -> list[torch.Tensor]:
    """Return what `weight_gradients` does, of as many images at a time as fit."""
    labels = torch.full((len(images),), position, device=images.device)

    def loss(part: slice) -> torch.Tensor:
        return F.cross_entropy(network(images[part]), labels[part])

    weights = list(network.parameters())
    return mean_gradients(loss, weights, len(images), Halving("images of a class"))


@dataclass(frozen=True)
class GradientMatching(Bilevel):
    """Moves the synthetic images of a class until a network would learn from them the same.

    Attributes:
        steps: networks that are begun.
        matches: steps on the pixels with each network; None: as many as images per class.
        lessons: epochs of the network on the synthetic images between two of them; None: 500 /
            images per class.
        network_rate: learning rate of the network.
        network_momentum: of its SGD.
    """

    steps: int = 1_000
    learning_rate: float = 0.1
    crop: tuple[float, float] | None = None
    matches: int | None = None
    lessons: int | None = None
    network_rate: float = 0.01
    network_momentum: float = 0.5

    def costs(self, extent: Extent) -> Costs:
        """Return the passes of matches, class by class, and of lessons between, see `Engine`."""
        matches = self.matches or extent.ipc
        each = self.steps * matches * extent.classes
        real, synthetic = self.matched(extent)
        return Costs(
            [
                Forwards("learned", real, each),
                Forwards("unrolled", synthetic, each),
                self.lesson_passes(extent, self.steps * (matches - 1)),
            ]
        )

    def matched(self, extent: Extent) -> tuple[int, int]:
        """Return how many real and synthetic images of a class are in a match."""
        return min(self.batch, extent.per_class), extent.ipc

    def lesson_passes(self, extent: Extent, times: int) -> Forwards:
        """Return the passes of so many lessons."""
        epochs = self.lessons or max(1, 500 // extent.ipc)
        images = extent.classes * extent.ipc
        batch = min(self.batch, images)
        return Forwards("learned", batch, times * epochs * images / batch)

    def recover(self, work: Work) -> Recovered:
        """Distil a block."""
        canvas, matches = self.canvas(work), self.matches or work.settings.ipc
        learner = self.learner(work, 0)

        def step(index: int) -> dict[str, torch.Tensor]:
            number, turn = divmod(index, matches)
            if turn == 0:
                learner.renew(self.network(work, "dc", number))
            gradient, total = self._match(work, canvas, learner.network, index)
            canvas.descend(gradient)
            if turn < matches - 1:
                self.teach(work, canvas, learner, index)
            return {"loss": total / len(work.labels)}

        return canvas.learn(self.steps * matches, step, learner.tensors, learner.restore)

    def canvas(self, work: Work) -> Canvas:
        """Return what is painted on."""
        return Canvas(work, self.learning_rate, self.momentum)

    def learner(self, work: Work, number: int) -> Learner:
        """Return a new network with its SGD."""
        return Learner(self.network(work, "dc", number), self.network_rate, self.network_momentum)

    def decode(self, images: torch.Tensor) -> torch.Tensor:
        """Return what networks see of the images of a class ``(ipc, 3, s, s)``: them."""
        return images

    def distance(
        self, real: Sequence[torch.Tensor], synthetic: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return Σ of `layer_distance` over the layers; biases and norms have no say."""
        pairs = zip(real, synthetic, strict=True)
        return torch.stack([layer_distance(a, b) for a, b in pairs if a.ndim > 1]).sum()

    def class_loss(
        self, work: Work, network: Classifier, images: torch.Tensor, step: int, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distance of the gradients of one class, and its gradient at the images.

        Args:
            work: the block.
            network: at whose weights they are taken.
            images: synthetic ones ``(ipc, 3, s, s)`` in [0, 1].
            step: names the real images and the view.
            position: of the class in the block.
        """
        label, leaf = work.labels[position], images.detach().requires_grad_()
        real, synthetic = self.augmented(
            work, step, label, self.real(work, step, label), self.decode(leaf)
        )
        wanted = mean_weight_gradients(network, real, position)
        loss, push = self._push(network, wanted, synthetic.detach(), position)
        return loss, torch.autograd.grad(synthetic, leaf, push)[0]

    def _push(
        self,
        network: Classifier,
        wanted: Sequence[torch.Tensor],
        images: torch.Tensor,
        position: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distance and its gradient at images, of as many at a time as fit.

        What is compared is a mean over the images. Of parts of them its value is found first; with
        the slope of the distance there, each part goes its way back by itself.
        """

        @cache
        def slope() -> tuple[torch.Tensor, list[tuple[int, torch.Tensor]]]:
            found = mean_weight_gradients(network, images, position)
            loss = self.distance(wanted, [value.requires_grad_() for value in found])
            slopes = torch.autograd.grad(loss, found, allow_unused=True)
            return loss.detach(), [(i, s) for i, s in enumerate(slopes) if s is not None]

        def back(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            leaf = images[part].detach().requires_grad_()
            found = weight_gradients(network, leaf, position, create_graph=True)
            if len(leaf) == len(images):
                loss = self.distance(wanted, found)
                return loss.detach(), torch.autograd.grad(loss, leaf)[0]
            loss, slopes = slope()
            pull = torch.stack([(found[i] * own).sum() for i, own in slopes]).sum()
            share = len(leaf) / len(images)
            return loss, torch.autograd.grad(pull * share, leaf)[0]

        halving = Halving("synthetic images of a class")
        losses, gradients = zip(*halving(back, len(images)), strict=True)
        return losses[0], torch.cat(gradients)

    def _match(
        self, work: Work, canvas: Canvas, network: Classifier, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixel gradient of the losses of all classes, and their sum."""
        gradient, total = torch.zeros_like(canvas.pixels), canvas.pixels.new_zeros(())
        for position in range(len(work.labels)):
            leaf = canvas.pixels.detach()[position].requires_grad_()
            images = canvas.images(leaf)
            loss, at_images = self.class_loss(work, network, images, index, position)
            (gradient[position],) = torch.autograd.grad(images, leaf, at_images)
            total = total + loss
        return gradient, total

    def teach(self, work: Work, canvas: Canvas, learner: Learner, index: int) -> None:
        """Train the network on the synthetic images as they are, ζ epochs."""
        images = canvas.images(canvas.pixels.detach()).flatten(0, 1)
        labels = torch.arange(len(work.labels), device=images.device)
        labels = labels.repeat_interleave(work.settings.ipc)
        for epoch in range(self.lessons or max(1, 500 // work.settings.ipc)):
            key = ("dc", "lesson", index, epoch)
            order = random_generator(work.settings.seed, *key).permutation(len(images))
            for batch in torch.from_numpy(order).split(self.batch):
                views = self.moved(work, images[batch], *key, int(batch[0]))
                learner.learn(views, labels[batch])
