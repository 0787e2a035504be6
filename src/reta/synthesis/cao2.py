"""CaO₂: generated images, chosen by how sure a classifier is and refined under their class.

Wang et al., *CaO₂: Rectifying Inconsistencies in Diffusion-Based Dataset Distillation*, ICCV 2025.

1. Objective-guided sampling: a class-conditional diffusion model makes several times as many images
   as are wanted; those a classifier recognises are kept, the surest first.
2. Condition-aware optimisation: the latent z of each is moved so that the model finds it likelier
   under its class c: a few steps of Adam on mean (ε − ε̂)² + λ · max |ε − ε̂|, ε̂ = ε_θ(z_t, t, c),
   for one noise ε per image and small t.

Official settings (hatchetProject/CaO2, sample_imagenet.py): DiT-XL/2 at 256 px, 50 sampling steps,
guidance 2.7, four times as many candidates, ResNet-18; 100 steps of Adam at 6e-4, λ = 10, t among
the first quarter of the sampling steps. On ImageNette and ImageWoof they vary: twice as many
candidates, ∅ for c (``condition: "null"``), and the least sure of the recognised ones at 50 images
per class (``prefer: "least"``).

Ours: DDIM instead of the ancestral sampler; the model is told the t that the noise belongs to (the
authors' code adds the noise of 20 · t); where too few are recognised, those follow that the
classifier gives the class most; without ``weights`` a small model on pixels is trained on the real
images first (the groundwork).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import nn

from reta import interruption
from reta.checkpoint import State
from reta.errors import DivergedError, UsageError
from reta.memory import Halving, Passes
from reta.models import Classifier
from reta.progress import track
from reta.runtime import Stopwatch, random_generator
from reta.synthesis.cost import Costs, Extent, Forwards
from reta.synthesis.diffusion import (
    Denoiser,
    NoiseOf,
    load_pipeline,
    own_denoiser,
    pipeline_files,
    small_unet,
    train_denoiser,
)
from reta.synthesis.engine import Recovered, Tensors, Work


def chosen(probability: torch.Tensor, label: int, count: int, *, least: bool) -> torch.Tensor:
    """Return which candidates are kept ``(count,)``, of what a classifier says of all.

    Those it recognises come first, the surest of them first (or the least sure); then the others,
    by what it gives the class.

    Args:
        probability: ``(n, classes)``.
        label: the class they were made for.
        count: how many to keep, at most n.
        least: whether the least sure of the recognised come first.
    """
    own = probability[:, label]
    recognised = probability.argmax(1) == label
    score = torch.where(recognised, 2 - own if least else 1 + own, own)
    return score.argsort(descending=True, stable=True)[:count]


def condition_loss(noise: torch.Tensor, seen: torch.Tensor, weight: float) -> torch.Tensor:
    """Return mean (ε − ε̂)² + λ · max |ε − ε̂| of each image: how unlikely it is under its class.

    Args:
        noise: ε ``(n, …)``.
        seen: ε̂, what the model takes for it.
        weight: λ.
    """
    gap = (noise - seen).flatten(1)
    return gap.square().mean(1) + weight * gap.abs().amax(1)


@dataclass(frozen=True)
class ConditionAware:
    """Samples from a diffusion model, selected and refined.

    Attributes:
        steps: of refinement; 0 leaves the samples as they are.
        latent_rate: of Adam on the latents.
        weight: λ of the largest error.
        candidates: images made for each that is kept.
        prefer: which of the recognised candidates are kept: the most confident or the least.
        condition: refine under the image's class, or under none.
        sampling: steps of the sampler.
        guidance: of the sampler; 1: none.
        weights: a folder or Hub name of a class-conditional pipeline of `diffusers`; None: a small
            model is trained.
        class_ids: the pipeline's number of each class, in order; None: found by name.
        training: steps of training the small model.
        batch: images in one of them.
        width: its channels.
    """

    steps: int = 100
    latent_rate: float = 6e-4
    weight: float = 10.0
    candidates: int = 4
    prefer: Literal["confident", "least"] = "confident"
    condition: Literal["class", "null"] = "class"
    sampling: int = 50
    guidance: float = 2.7
    weights: str | None = None
    class_ids: tuple[int, ...] | None = None
    training: int = 10_000
    batch: int = 64
    width: int = 32

    def __post_init__(self) -> None:
        for name in ("candidates", "sampling", "training", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"engine.{name} is {getattr(self, name)}; give at least 1")
        if self.steps < 0 or self.width % 4 or self.width < 4:
            raise UsageError("engine.steps must not be negative, and engine.width divide by 4")

    @property
    def together(self) -> bool:
        """Whether all classes are needed in one block: no, none knows of another."""
        return False

    @property
    def groundwork(self) -> int:
        """Units of work before the first block: the small model, if no other is given."""
        return 0 if self.weights else 1

    def costs(self, extent: Extent) -> Costs:
        """Return the passes of sampling, twice where it is guided, and of refining."""
        images, guided = extent.ipc, 2 if self.guidance != 1 else 1
        each = extent.classes * self.sampling * guided
        sampling = Forwards("seen", images * self.candidates, each)
        refining = Forwards("learned", images, extent.classes * self.steps)
        learning = Forwards("learned", self.batch, self.training)
        return Costs([sampling, refining], [learning] if self.groundwork else (), states=1)

    def rehearsal(self, classes: int, image_size: int) -> nn.Module | None:
        """Return a small model like the one that is trained; None if a pipeline is given."""
        if self.weights:
            return None
        return NoiseOf(small_unet(image_size, 3, classes, self.width))

    def given(self) -> Mapping[str, str]:
        """Return the hashes of the pipeline's files, if one is given."""
        return pipeline_files(self.weights) if self.weights else {}

    def scaled(self, share: float) -> Self:
        """Return the method with a share of its training; refining is cheap, and stays."""
        return replace(self, training=max(1, round(self.training * share)))

    def lay(self, index: int, work: Work) -> Tensors:
        """Train the small diffusion model; return its weights."""
        return train_denoiser(work, self.training, self.batch, self.width)

    def denoiser(self, work: Work) -> Denoiser:
        """Return the diffusion model."""
        if self.weights:
            names = work.pool.images.classes
            return load_pipeline(self.weights, names, self.class_ids, work.device)
        made = own_denoiser(work, len(work.pool.images.classes), self.width, work.laid[0])
        made.model.eval().requires_grad_(False)
        return made

    def recover(self, work: Work) -> Recovered:
        """Distil a block, class by class."""
        watch, denoiser = Stopwatch(), self.denoiser(work)
        latents: list[torch.Tensor] = []  # of the classes that are done: selected, refined
        losses: list[torch.Tensor] = []
        state, earlier = work.checkpoint.load(), 0.0
        if state is not None:
            latents, losses = (list(state.tensors[name]) for name in ("latents", "losses"))
            latents = [pair.to(work.device) for pair in latents]
            earlier = float(state.facts["seconds"])

        def kept() -> State:
            facts = {"seconds": earlier + watch.seconds}
            if not latents:
                return State({}, facts)
            done = {"latents": torch.stack(latents), "losses": torch.stack(losses)}
            return State(done, facts)

        remaining = work.labels[len(latents) :]
        with work.checkpoint.keeping(kept) as offer:
            for label in track(remaining, "recover: samples", len(remaining)):
                offer()
                selected = self.select(work, denoiser, label)
                refined, course = self.refine(work, denoiser, selected, label)
                latents.append(torch.stack([selected, refined]))
                losses.append(course)
        frames = [
            torch.stack([self._shown(work, denoiser, pair[stage]) for pair in latents])
            for stage in ((0, 1) if self.steps else (1,))
        ]
        course = torch.stack(losses).mean(0)
        rows = range(0, self.steps, max(1, self.steps // 100))
        return Recovered(
            images=frames[-1],
            frames=frames,
            anchors=[],
            steps=[{"step": row, "loss": float(course[row])} for row in rows],
            connections=[],
            seconds=earlier + watch.seconds,
            images_per_pass=work.settings.images_per_pass,
        )

    def select(self, work: Work, denoiser: Denoiser, label: int) -> torch.Tensor:
        """Return the latents ``(ipc, …)`` of the samples of a class that are kept.

        Raises:
            DivergedError: if the classifier's answers are no numbers.
        """
        ipc, size = work.settings.ipc, work.pool.image_size
        rng = random_generator(work.settings.seed, "cao2", "sample", label)
        count = ipc * self.candidates
        noise = torch.from_numpy(rng.standard_normal((count, *denoiser.shape))).float()

        def sample(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            latents = denoiser.sample(part.to(work.device), label, self.sampling, self.guidance)
            return latents, _answer(work.committee[0], denoiser.decode(latents, size))

        found = zip(*Passes(size).of(sample, noise), strict=True)
        made, probability = (torch.cat(parts) for parts in found)
        if not torch.isfinite(probability).all():
            raise DivergedError(f"{work.committee[0].name} gives no probabilities of the samples")
        kept = chosen(probability, label, ipc, least=self.prefer == "least")
        return made[kept]

    def refine(
        self, work: Work, denoiser: Denoiser, latents: torch.Tensor, label: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents of a class, likelier under it, and the mean loss of each step.

        Args:
            work: the block.
            denoiser: the diffusion model.
            latents: ``(ipc, …)``.
            label: their class.
        """
        rng = random_generator(work.settings.seed, "cao2", "refine", label)
        noise = torch.from_numpy(rng.standard_normal(latents.shape)).to(latents)
        marks = range(1, max(2, self.sampling // 4))  # of the sampling steps, the last ones taken
        stride = denoiser.scheduler.config.num_train_timesteps // self.sampling
        draws = rng.choice(marks, (self.steps, len(latents))) * stride
        number = denoiser.classes[label]
        if self.condition == "null" and denoiser.null is not None:
            number = denoiser.null
        classes = torch.full((len(latents),), number, device=latents.device)
        leaf = latents.clone().requires_grad_()
        optimiser = torch.optim.Adam([leaf], self.latent_rate * work.checkpoint.caution)
        course, halving = torch.zeros(self.steps), Halving("latents of a class")
        for step, times in enumerate(torch.from_numpy(draws).to(latents.device)):
            interruption.check()

            def descent(part: slice, times: torch.Tensor = times) -> tuple[torch.Tensor, ...]:
                own = leaf.detach()[part].requires_grad_()
                noised = denoiser.noised(own, noise[part], times[part])
                seen = denoiser.noise(noised, times[part], classes[part])
                loss = condition_loss(noise[part], seen, self.weight)
                return torch.autograd.grad(loss.sum(), own)[0], loss.detach()

            found = zip(*halving(descent, len(leaf)), strict=True)
            leaf.grad, losses = (torch.cat(parts) for parts in found)
            optimiser.step()
            course[step] = losses.mean()
        if not torch.isfinite(leaf).all():
            raise DivergedError("latents became NaN or infinite; lower engine.latent_rate")
        return leaf.detach(), course

    def _shown(self, work: Work, denoiser: Denoiser, latents: torch.Tensor) -> torch.Tensor:
        size = work.pool.image_size
        images = torch.cat(Passes(size).of(lambda part: denoiser.decode(part, size), latents))
        return (images * 255).round().to(torch.uint8).cpu()


@torch.no_grad()
def _answer(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    return F.softmax(teacher(images), dim=1)
