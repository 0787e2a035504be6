"""DM: the mean embedding of each class under random networks (Zhao and Bilen, WACV 2023).

Official settings (VICO-UoE/DatasetCondensation, main_DM.py): 20,000 steps, each with a fresh
ConvNet; SGD on normalised pixels, learning rate 1, momentum 0.5; 256 real images of each class;
images start from random real ones. What is ours for all such methods: `reta.synthesis.bilevel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reta import interruption
from reta.memory import Halving, Passes
from reta.models import Classifier
from reta.synthesis.bilevel import Bilevel, Canvas
from reta.synthesis.cost import Costs, Extent, Forwards
from reta.synthesis.engine import Recovered, Work


def mean_gap(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Return ‖mean of ψ(real) − mean of ψ(synthetic)‖²: DM's objective for one class.

    The empirical maximum mean discrepancy, with a random network ψ in place of a kernel.

    Args:
        real: features ``(n, d)``.
        synthetic: features ``(ipc, d)``.
    """
    return (real.mean(0) - synthetic.mean(0)).square().sum()


@dataclass(frozen=True)
class DistributionMatching(Bilevel):
    """Moves the synthetic images of a class until their mean embedding is that of the real ones.

    The networks are never trained, so a step costs one pass, and classes do not meet.
    """

    steps: int = 20_000
    learning_rate: float = 1.0

    @property
    def together(self) -> bool:
        """Whether all classes are needed in one block: no, none knows of another."""
        return False

    def costs(self, extent: Extent) -> Costs:
        """Return the passes of real and of synthetic images, see `Engine`."""
        real = extent.classes * min(self.batch, extent.per_class)
        synthetic = Forwards("learned", extent.classes * extent.ipc, self.steps)
        return Costs([Forwards("seen", real, self.steps), synthetic])

    def recover(self, work: Work) -> Recovered:
        """Distil a block."""
        canvas = Canvas(work, self.learning_rate, self.momentum)
        ipc, count = work.settings.ipc, len(work.labels)
        halving = Halving(f"classes of {ipc} images", max(1, work.settings.images_per_pass // ipc))

        def step(index: int) -> dict[str, torch.Tensor]:
            network = self.network(work, "dm", index).requires_grad_(False)

            def part(own: slice) -> tuple[torch.Tensor, torch.Tensor]:
                interruption.check()  # nothing has changed yet in this step
                leaf = canvas.pixels.detach()[own].requires_grad_()
                positions = range(count)[own]
                loss = self.loss(work, network, canvas.images(leaf), index, positions)
                return torch.autograd.grad(loss, leaf)[0], loss.detach()

            gradients, losses = zip(*halving(part, count), strict=True)
            canvas.descend(torch.cat(gradients))
            return {"loss": torch.stack(losses).sum() / count}

        return canvas.learn(self.steps, step)

    def loss(
        self, work: Work, network: Classifier, images: torch.Tensor, step: int, positions: range
    ) -> torch.Tensor:
        """Return the sum of `mean_gap` over some classes of a block.

        Args:
            work: the block.
            network: ψ.
            images: synthetic ones ``(classes, ipc, 3, s, s)`` in [0, 1].
            step: names the real images and the views.
            positions: of the classes in the block.
        """
        reals, synthetics = [], []
        for position, own in zip(positions, images, strict=True):
            label = work.labels[position]
            real, synthetic = self.augmented(work, step, label, self.real(work, step, label), own)
            reals.append(real)
            synthetics.append(synthetic)
        with torch.no_grad():
            passes = Passes(work.pool.image_size)
            real_features = torch.cat(passes.of(network.features, torch.cat(reals)))
        synthetic_features = network.features(torch.cat(synthetics))
        pairs = zip(
            real_features.split([len(part) for part in reals]),
            synthetic_features.split([len(part) for part in synthetics]),
            strict=True,
        )
        return torch.stack([mean_gap(real, synthetic) for real, synthetic in pairs]).sum()
