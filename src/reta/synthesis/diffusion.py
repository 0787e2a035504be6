"""Class-conditional diffusion models behind one interface: a pipeline of others, or a small one.

The models, the noise schedule and the sampler's formula are those of Hugging Face `diffusers`
(``pip install 'reta[diffusers]'``); the loops are ours, so that every draw is keyed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reta import interruption
from reta.checkpoint import State, optimiser_tensors, restore_optimiser
from reta.errors import UsageError
from reta.files import sha256_file
from reta.memory import Halving, descend
from reta.progress import track
from reta.runtime import random_generator, seeded
from reta.synthesis.bilevel import without
from reta.synthesis.engine import Tensors, Work

_TIMES = 1000  # of noise, from almost none to nothing else
_DROPPED = 0.1  # share of images whose class is hidden in training, so that guidance is possible
_AVERAGE = 0.995  # decay of the running mean of weights


def diffusers() -> Any:
    """Return the library.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import diffusers as library
    except ImportError as error:
        raise UsageError(
            "diffusion models need diffusers: pip install 'reta[diffusers]'"
        ) from error
    return library


@dataclass(frozen=True)
class Denoiser:
    """A model that says which noise was added to an image of a class.

    Attributes:
        model: called with latents, times and classes; answers with ``.sample``.
        scheduler: a DDIM scheduler with the model's noise schedule.
        shape: of the latents, ``(channels, side, side)``.
        null: the class that stands for none; None if the model knows no such.
        classes: the model's number of each class of the data.
        decoder: turns latents into images; None where they are images already.
    """

    model: Any
    scheduler: Any
    shape: tuple[int, int, int]
    null: int | None
    classes: Sequence[int]
    decoder: Any = None

    def noise(
        self, latents: torch.Tensor, times: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Return the noise ε_θ(z_t, t, c) the model sees, ``(n, *shape)``.

        Args:
            latents: z_t ``(n, *shape)``.
            times: t ``(n,)``.
            classes: the model's own numbers ``(n,)``.
        """
        predicted: torch.Tensor = self.model(latents, times, class_labels=classes).sample
        return predicted[:, : self.shape[0]]  # a DiT answers with variances too

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """Return z_t = √ᾱ_t · z + √(1 − ᾱ_t) · ε."""
        mixed: torch.Tensor = self.scheduler.add_noise(latents, noise, times)
        return mixed

    @torch.no_grad()
    def sample(
        self, latents: torch.Tensor, label: int, steps: int, guidance: float
    ) -> torch.Tensor:
        """Return latents of a class, made of noise ``(n, *shape)`` by DDIM.

        Args:
            latents: standard normal noise.
            label: the class in the data.
            steps: of the sampler.
            guidance: w in ε = ε(∅) + w · (ε(c) − ε(∅)); 1 or a model without ∅: none.
        """
        self.scheduler.set_timesteps(steps)
        wanted = torch.full((len(latents),), self.classes[label], device=latents.device)
        for time in self.scheduler.timesteps:
            interruption.check()
            times = torch.full_like(wanted, int(time))
            noise = self.noise(latents, times, wanted)
            if self.null is not None and guidance != 1:
                free = self.noise(latents, times, torch.full_like(wanted, self.null))
                noise = free + guidance * (noise - free)
            latents = self.scheduler.step(noise, int(time), latents).prev_sample
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, size: int) -> torch.Tensor:
        """Return images ``(n, 3, size, size)`` in [0, 1]."""
        if self.decoder is not None:
            latents = self.decoder.decode(latents / self.decoder.config.scaling_factor).sample
        images = (latents / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)
        if images.shape[-1] == size:
            return images
        return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def pipeline_files(place: str) -> dict[str, str]:
    """Return the hash of each file that decides what a pipeline makes: settings and weights.

    Args:
        place: a folder, or a name on the Hugging Face Hub, whose files are fetched.

    Raises:
        UsageError: if there are none.
    """
    folder = Path(place)
    if not folder.is_dir():
        try:
            folder = Path(diffusers().DiffusionPipeline.download(place, use_safetensors=True))
        except (OSError, ValueError) as error:
            raise _not_a_pipeline(place, error) from error
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")
    )  # nothing else is read of a pipeline with safetensors
    if not files:
        raise _not_a_pipeline(place, "it holds none")
    return {path.relative_to(folder).as_posix(): _hash(path, *_stamp(path)) for path in files}


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


@lru_cache(maxsize=1024)
def _hash(path: Path, size: int, changed: int) -> str:
    """Return the hash of a file that stayed as it was: each block asks for it."""
    return sha256_file(path)


def _not_a_pipeline(place: str, reason: object) -> UsageError:
    return UsageError(f"{place}: not a pipeline of diffusers with safetensors: {reason}")


def load_pipeline(
    place: str, names: Sequence[str], class_ids: Sequence[int] | None, device: torch.device
) -> Denoiser:
    """Return the model of a class-conditional pipeline, such as DiT's.

    Args:
        place: a folder, or a name on the Hugging Face Hub; safetensors only.
        names: of the classes of the data.
        class_ids: the model's number of each; None: found by name, or the same number where
            there are as many.
        device: where it goes.

    Raises:
        UsageError: if it cannot be read, is not class-conditional, or lacks a class.
    """
    try:
        pipeline = diffusers().DiffusionPipeline.from_pretrained(
            place, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, AttributeError) as error:
        raise _not_a_pipeline(place, error) from error
    model = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    settings: Mapping[str, Any] = {} if model is None else model.config
    known = settings.get("num_embeds_ada_norm") or settings.get("num_class_embeds")
    if model is None or not known:
        raise UsageError(f"{place}: not class-conditional; a DiT or a UNet2DModel with classes is")
    ids = _class_ids(place, pipeline, names, class_ids, known)
    beyond = bool(settings.get("num_embeds_ada_norm"))  # a DiT counts its classes without ∅
    null = known if beyond else known - 1
    if null in ids:
        null = None  # every number is a class
    for part in (model, getattr(pipeline, "vae", None)):
        if part is not None:
            part.to(device).eval().requires_grad_(False)
    side = int(settings["sample_size"])
    shape = (int(settings["in_channels"]), side, side)
    scheduler = diffusers().DDIMScheduler.from_config(pipeline.scheduler.config)
    return Denoiser(model, scheduler, shape, null, ids, getattr(pipeline, "vae", None))


def _class_ids(
    place: str, pipeline: Any, names: Sequence[str], given: Sequence[int] | None, known: int
) -> list[int]:
    if given is not None:
        if len(given) != len(names) or not all(0 <= one < known for one in given):
            raise UsageError(
                f"engine.class_ids: {len(given)} numbers for {len(names)} classes; give one for "
                f"each, from 0 to {known - 1}"
            )
        return list(given)
    labels: Mapping[str, int] = getattr(pipeline, "labels", None) or {}
    if all(name in labels for name in names):
        return [labels[name] for name in names]
    if known == len(names) or (not labels and known == len(names) + 1):
        return list(range(len(names)))
    missing = next((name for name in names if name not in labels), names[0])
    raise UsageError(
        f"{place} does not know class {missing!r} by name; say which of its {known} classes are "
        "yours, in order: --set engine.class_ids=[…]"
    )


def small_unet(size: int, channels: int, classes: int, width: int) -> Any:
    """Return a freshly initialised UNet that knows so many classes, and none."""
    return diffusers().UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=classes + 1,
    )


class NoiseOf(nn.Module):
    """A model asked about images of the first class with little noise: a network like others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the noise ``(n, 3, s, s)`` the model sees."""
        zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        noise: torch.Tensor = self.model(images, zeros, class_labels=zeros).sample
        return noise


def own_denoiser(work: Work, classes: int, width: int, tensors: Tensors | None = None) -> Denoiser:
    """Return a small UNet on pixels, freshly initialised or with given weights.

    Args:
        work: gives image size, colour and seed.
        classes: of the data.
        width: channels at full resolution; twice as many at half of it.
        tensors: its weights.
    """
    size = work.pool.image_size
    channels = 1 if work.pool.grey else 3
    with seeded(work.settings.seed, "diffusion", "weights"):
        model = small_unet(size, channels, classes, width)
    if tensors is not None:
        model.load_state_dict(dict(tensors))
    scheduler = diffusers().DDIMScheduler(_TIMES, beta_schedule="squaredcos_cap_v2")
    shape = (channels, size, size)
    return Denoiser(model.to(work.device), scheduler, shape, classes, range(classes))


def train_denoiser(work: Work, steps: int, batch: int, width: int) -> Tensors:
    """Train the small UNet on the real images of some classes; return its mean weights.

    The usual objective, E ‖ε − ε_θ(z_t, t, c)‖² (Ho et al., NeurIPS 2020), with the class hidden
    for a tenth of the images (Ho and Salimans, 2021); Adam, 1e-3, cosine to zero.

    Args:
        work: whose labels are the classes it is trained on.
        steps: of Adam.
        batch: images in a step.
        width: of the network.
    """
    denoiser = own_denoiser(work, len(work.pool.images.classes), width)
    model: torch.nn.Module = denoiser.model.train()
    rate = 1e-3 * work.checkpoint.caution
    optimiser = torch.optim.Adam(model.parameters(), rate)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    halving = Halving("images of a training batch")
    done = 0
    state = work.checkpoint.load()
    if state is not None:
        done = state.facts["done"]
        model.load_state_dict(without("model.", state.tensors))
        restore_optimiser(optimiser, state.tensors)
        for name, value in without("average.", state.tensors).items():
            average[name].copy_(value)

    def kept() -> State:
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in average.items()}
        return State(tensors | optimiser_tensors(optimiser), {"done": done})

    with work.checkpoint.keeping(kept) as offer:
        for step in track(range(done, steps), "diffusion model", steps - done):
            offer()
            loss = _denoising_loss(denoiser, work, step, batch)
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            descend(optimiser, loss, batch, halving)
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - min(_AVERAGE, (1 + step) / (10 + step)))
            done = step + 1
    return average


def _denoising_loss(
    denoiser: Denoiser, work: Work, step: int, batch: int
) -> Callable[[slice], torch.Tensor]:
    """Return the mean squared error of the noise seen in parts of a random batch of real images."""
    rng = random_generator(work.settings.seed, "diffusion", step)
    members = torch.cat([work.pool.members(label) for label in work.labels])
    chosen = members[torch.from_numpy(rng.integers(len(members), size=batch))]
    images = work.pool.pixels(chosen)[:, : denoiser.shape[0]] * 2 - 1
    noise = torch.from_numpy(rng.standard_normal(images.shape)).float()
    times = torch.from_numpy(rng.integers(_TIMES, size=batch))
    hidden = torch.from_numpy(rng.random(batch) < _DROPPED)
    classes = work.pool.labels[chosen].masked_fill(hidden, denoiser.null or 0)
    images, noise, times, classes = (
        part.to(work.device) for part in (images, noise, times, classes)
    )

    def loss(part: slice) -> torch.Tensor:
        noised = denoiser.noised(images[part], noise[part], times[part])
        return F.mse_loss(denoiser.noise(noised, times[part], classes[part]), noise[part])

    return loss
