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

import torch
import torch.nn.functional as F

from reta.models import Classifier
from reta.runtime import random_generator
from reta.synthesis.bilevel import Bilevel, Canvas, Learner
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
    ) -> torch.Tensor:
        """Return the distance of the gradients of one class.

        Args:
            work: the block.
            network: at whose weights they are taken.
            images: synthetic ones ``(ipc, 3, s, s)`` in [0, 1].
            step: names the real images and the view.
            position: of the class in the block.
        """
        label = work.labels[position]
        real, synthetic = self.augmented(
            work, step, label, self.real(work, step, label), self.decode(images)
        )
        wanted = weight_gradients(network, real, position)
        found = weight_gradients(network, synthetic, position, create_graph=True)
        return self.distance(wanted, found)

    def _match(
        self, work: Work, canvas: Canvas, network: Classifier, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixel gradient of the losses of all classes, and their sum."""
        gradient, total = torch.zeros_like(canvas.pixels), canvas.pixels.new_zeros(())
        for position in range(len(work.labels)):
            leaf = canvas.pixels.detach()[position].requires_grad_()
            loss = self.class_loss(work, network, canvas.images(leaf), index, position)
            (gradient[position],) = torch.autograd.grad(loss, leaf)
            total = total + loss.detach()
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
                learner.descend(F.cross_entropy(learner.network(views), labels[batch]))
