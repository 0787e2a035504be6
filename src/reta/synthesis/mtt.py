"""MTT: a network that learns the synthetic images goes where one that learns real ones went.

Cazenavette et al., *Dataset Distillation by Matching Training Trajectories*, CVPR 2022.

Experts are trained on the real images first, and their weights after every epoch are kept (the
groundwork: one unit of work and one file each). Then, again and again, a student begins at the
weights θ_t of an expert after a random epoch t, takes N steps on the synthetic images at a learning
rate α that is learned too, and ends at θ̂_{t+N}; its distance from where the expert was M epochs
later goes back through all N steps into the pixels.

Official settings (GeorgeCazenavette/mtt-distillation, CIFAR-100, ipc 1): 100 experts, plain SGD
0.01, batches of 256; 5,000 steps; N = 20, M = 3, t < 20; SGD on normalised pixels, learning rate
1,000, momentum 0.5; on α 1e-5, 0.5, from 0.01.

Ours: experts end at the last epoch that is used (t + M), and an epoch of few real images has at
least 20 steps, else no expert would get anywhere on a small set; no ZCA whitening; α stays
positive, is noted with the losses (``student_rate``), and students of `reta train` have the rate of
their protocol instead; what `reta.synthesis.bilevel` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from reta.checkpoint import State
from reta.memory import as_memory_limit
from reta.models import Classifier
from reta.progress import track
from reta.runtime import random_generator
from reta.synthesis.bilevel import Bilevel, Canvas, Learner, without
from reta.synthesis.cost import Costs, Extent, Forwards
from reta.synthesis.engine import Recovered, Tensors, Work

_LEAST_STEPS = 20  # of an expert in an epoch
_LEAST_RATE = 1e-5


def trajectory_gap(
    reached: torch.Tensor, wanted: torch.Tensor, begun: torch.Tensor
) -> torch.Tensor:
    """Return ‖θ̂_{t+N} − θ_{t+M}‖² / ‖θ_t − θ_{t+M}‖²: MTT's objective.

    Args:
        reached: the student's weights ``(p,)`` after its steps.
        wanted: the expert's, M epochs after where the student began.
        begun: where it began.
    """
    return (reached - wanted).square().sum() / (begun - wanted).square().sum()


def rounds_of(batch: int, images: int) -> int:
    """Return how often an expert sees every image in what counts as an epoch."""
    return -(-_LEAST_STEPS * batch // images)


def classify(network: Classifier, weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the logits ``(n, classes)`` of a network at other weights ``(p,)`` than its own."""
    named = dict(network.named_parameters())
    parts = weights.split([own.numel() for own in named.values()])
    given = {
        name: part.view_as(own) for (name, own), part in zip(named.items(), parts, strict=True)
    }
    logits: torch.Tensor = functional_call(network, given, (images,))
    return logits


@dataclass(frozen=True)
class TrajectoryMatching(Bilevel):
    """Moves all synthetic images so that a student that learns them follows an expert.

    Attributes:
        experts: networks trained on the real images.
        expert_rate: learning rate of their SGD.
        expert_epochs: M, how many epochs of an expert a student is to catch up with.
        last_start: students begin at an epoch t below it.
        student_steps: N.
        student_rate: α to begin with.
        rate_rate: learning rate of α.
        student_batch: synthetic images in a step of a student; None: all.
    """

    steps: int = 5_000
    learning_rate: float = 1000.0
    experts: int = 100
    expert_rate: float = 0.01
    expert_epochs: int = 3
    last_start: int = 20
    student_steps: int = 20
    student_rate: float = 0.01
    rate_rate: float = 1e-5
    student_batch: int | None = None

    @property
    def groundwork(self) -> int:
        """Units of work before the first block: the experts."""
        return self.experts

    def scaled(self, share: float) -> Self:
        """Return the method with a share of its steps and experts."""
        return replace(super().scaled(share), experts=max(1, round(self.experts * share)))

    @property
    def epochs(self) -> int:
        """How long an expert is trained: no later weights are asked for."""
        return self.last_start - 1 + self.expert_epochs

    def costs(self, extent: Extent) -> Costs:
        """Return the passes of an expert, and of the students, all of whose steps are held."""
        batch = min(self.batch, extent.real)
        rounds = self.epochs * rounds_of(batch, extent.real)
        images = self.student_batch or extent.classes * extent.ipc
        return Costs(
            [Forwards("unrolled", images, self.steps * self.student_steps)],
            [Forwards("learned", batch, rounds * extent.real / batch)],
            states=self.epochs + 1,
            held=self.student_steps,
        )

    def lay(self, index: int, work: Work) -> Tensors:
        """Train an expert; return its ``trajectory`` (epochs + 1, p): the weights it had."""
        epochs = self.epochs
        rate = self.expert_rate * work.checkpoint.caution
        learner = Learner(self.network(work, "expert", index), rate)
        trajectory = [_weights(learner.network)]
        state = work.checkpoint.load()
        if state is not None:
            trajectory = list(state.tensors["trajectory"])
            learner.restore(without("learner.", state.tensors))

        def kept() -> State:
            tensors = {f"learner.{name}": value for name, value in learner.tensors().items()}
            return State(tensors | {"trajectory": torch.stack(trajectory)})

        remaining = range(len(trajectory) - 1, epochs)
        with work.checkpoint.keeping(kept) as offer:
            for epoch in track(remaining, f"expert {index + 1}/{self.experts}", len(remaining)):
                offer()
                self._epoch(work, learner, index, epoch)
                trajectory.append(_weights(learner.network))
        return {"trajectory": torch.stack(trajectory)}

    def _epoch(self, work: Work, learner: Learner, index: int, epoch: int) -> None:
        """Let an expert see every real image once, or as often as makes enough steps."""
        members = torch.cat([work.pool.members(label) for label in work.labels])
        counts = torch.tensor([len(work.pool.members(label)) for label in work.labels])
        labels = torch.arange(len(work.labels)).repeat_interleave(counts)
        batch = min(self.batch, len(members))
        for turn in range(rounds_of(batch, len(members))):
            key = ("expert", index, epoch, turn)
            order = random_generator(work.settings.seed, *key).permutation(len(members))
            for number, chosen in enumerate(torch.from_numpy(order).split(batch)):
                images = work.pool.pixels(members[chosen]).to(work.device)
                views = self.moved(work, images, *key, number)
                learner.learn(views, labels[chosen].to(work.device))

    def recover(self, work: Work) -> Recovered:
        """Distil a block: all classes the experts know."""
        canvas = Canvas(work, self.learning_rate, self.momentum)
        network = self.network(work, "student").requires_grad_(False)
        rate = torch.tensor(self.student_rate, device=work.device)
        velocity = torch.zeros_like(rate)
        unfit = (
            f"the {self.student_steps} steps of a student do not fit into memory, and fewer images "
            "or steps would be another method; lower engine.student_batch or engine.student_steps, "
            "or use a device with more memory"
        )

        def step(index: int) -> dict[str, torch.Tensor]:
            pixels = canvas.pixels.detach().requires_grad_()
            alpha = rate.clone().requires_grad_()
            images = canvas.images(pixels).flatten(0, 1)
            begun, wanted = self._leg(work, index)
            with as_memory_limit(unfit):
                loss = self.loss(work, network, images, alpha, begun, wanted, index)
                gradient, at_rate = torch.autograd.grad(loss, [pixels, alpha])
            canvas.descend(gradient)
            velocity.mul_(self.momentum).add_(at_rate)
            rate.sub_(self.rate_rate * work.checkpoint.caution * velocity).clamp_(min=_LEAST_RATE)
            return {"loss": loss.detach(), "student_rate": rate.clone()}

        def restore(tensors: Tensors) -> None:
            rate.copy_(tensors["rate"])
            velocity.copy_(tensors["velocity"])

        return canvas.learn(self.steps, step, lambda: {"rate": rate, "velocity": velocity}, restore)

    def _leg(self, work: Work, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where a random expert was at a random epoch, and M epochs later."""
        rng = random_generator(work.settings.seed, "mtt", step)
        trajectory = work.laid[int(rng.integers(len(work.laid)))]["trajectory"]
        start = int(rng.integers(self.last_start))
        ends = trajectory[start], trajectory[start + self.expert_epochs]
        return ends[0].to(work.device), ends[1].to(work.device)

    def loss(
        self,
        work: Work,
        network: Classifier,
        images: torch.Tensor,
        rate: torch.Tensor,
        begun: torch.Tensor,
        wanted: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """Return how far a student of the images ends from the expert.

        Args:
            work: the block.
            network: of the student; its own weights have no say.
            images: synthetic ones ``(classes · ipc, 3, s, s)`` in [0, 1], class by class.
            rate: α.
            begun: weights ``(p,)`` the student begins with.
            wanted: those it should end with.
            step: names the order of the images and their views.
        """
        labels = torch.arange(len(work.labels), device=images.device)
        labels = labels.repeat_interleave(work.settings.ipc)
        weights, queue = begun.clone().requires_grad_(), list[torch.Tensor]()
        for turn in range(self.student_steps):
            key = ("mtt", step, turn)
            if not queue:
                order = random_generator(work.settings.seed, *key).permutation(len(images))
                queue = list(torch.from_numpy(order).split(self.student_batch or len(images)))
            batch = queue.pop()
            views = self.moved(work, images[batch], *key, "view")
            error = F.cross_entropy(classify(network, weights, views), labels[batch])
            (gradient,) = torch.autograd.grad(error, weights, create_graph=True)
            weights = weights - rate * gradient
        return trajectory_gap(weights, wanted, begun)


def _weights(network: Classifier) -> torch.Tensor:
    return parameters_to_vector(network.parameters()).detach().cpu().clone()
