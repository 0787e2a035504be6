"""The one training loop, for teachers on real images and students on distilled ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F

from reta.checkpoint import Checkpoint, State, optimiser_tensors, restore_optimiser
from reta.data.augment import padded_views, random_views, render
from reta.data.distilled import DistilledSet, MicroBatch
from reta.data.images import ImageSet
from reta.errors import DivergedError
from reta.interruption import check
from reta.models import Classifier
from reta.progress import track
from reta.runtime import images_per_pass, random_generator, seeded, torch_seed

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Batches = Callable[[int], Iterable[list[MicroBatch]]]


@dataclass(frozen=True)
class Protocol:
    """How a model is trained: AdamW with a cosine over all epochs.

    Attributes:
        epochs: passes over the data.
        learning_rate: at the start.
        weight_decay: of weights with more than one axis; biases and norms are spared.
        stretch: η, the cosine runs over η times the epochs; at 2 it ends at half the rate.
        temperature: T of the soft labels.
        labels: soft: the committee's, by KL divergence at T; hard: the class of the image and of
            its CutMix partner, by cross-entropy.
        checks: when test accuracy is measured: after each fifth of the epochs; or, as FADRM does,
            after every tenth epoch of the last fifth; and after the last epoch.
    """

    epochs: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    stretch: float = 1.0
    temperature: float = 20.0
    labels: Literal["soft", "hard"] = "soft"
    checks: Literal["fifths", "end"] = "fifths"

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        phase = math.pi * epoch / (self.epochs * self.stretch)
        return self.learning_rate * 0.5 * (1 + math.cos(phase))

    def checked(self, done: int) -> bool:
        """Return whether test accuracy is measured when so many epochs are done."""
        if self.checks == "end":  # FADRM: epochs counted from 0 that end in 9
            return done == self.epochs or (done % 10 == 0 and done - 1 >= 0.8 * self.epochs)
        return done == self.epochs or done % -(-self.epochs // 5) == 0


@dataclass
class Progress:
    """Accuracy over the course of training.

    Attributes:
        curve: epochs finished and test accuracy in [0, 1] after them.
        per_class: last accuracy of each class.
        confusion: last ``(true class, predicted class, images)``, where there are any.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    per_class: list[float | None] = field(default_factory=list)
    confusion: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def last(self) -> float:
        """Accuracy after the last epoch."""
        return self.curve[-1][1]

    @property
    def best(self) -> float:
        """Best accuracy seen: chosen on test images, so read it beside `last`."""
        return max(accuracy for _, accuracy in self.curve)


def soft_loss(temperature: float) -> Loss:
    """Return KL(student ‖ teacher) at a temperature, from logits, without the factor T²."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        student = F.log_softmax(logits / temperature, dim=1)
        teacher = F.log_softmax(targets / temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    return loss


def fit(
    model: Classifier,
    batches: Batches,
    loss: Loss,
    protocol: Protocol,
    after_epoch: Callable[[int], None],
    description: str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a model in place.

    Args:
        model: on its device.
        batches: for an epoch, its batches, each a list of micro-batches. A micro-batch is one
            forward pass, so one set of batch statistics; a batch is one optimiser step.
        loss: of logits and targets.
        protocol: rates and epochs.
        after_epoch: called with the number of epochs finished.
        description: for the progress bar.
        seed: of dropout.
        progress: what ``after_epoch`` fills, to be kept with the state.
        checkpoint: keeps the state of the work, so that it can be interrupted.

    Raises:
        DivergedError: if the loss becomes NaN or infinite.
    """
    checkpoint, progress = checkpoint or Checkpoint(), progress or Progress()
    protocol = replace(protocol, learning_rate=protocol.learning_rate * checkpoint.caution)
    optimiser = adamw(model, protocol)
    epoch, taken = _resume(checkpoint.load(), model, optimiser, progress)  # the next step

    def state() -> State:
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        facts = {"epoch": epoch, "taken": taken, "progress": asdict(progress)}
        return State(tensors | optimiser_tensors(optimiser), facts)

    finite = torch.ones((), device=model.mean.device)  # looked at rarely: reading it is a wait
    with checkpoint.keeping(state) as offer, seeded(seed, "dropout"):
        for _ in track(range(epoch, protocol.epochs), description, protocol.epochs - epoch):
            for group in optimiser.param_groups:
                group["lr"] = protocol.rate(epoch)
            model.train()
            for batch in islice(batches(epoch), taken, None):
                offer()
                check()
                torch.manual_seed(torch_seed(seed, "dropout", epoch, taken))
                optimiser.zero_grad()
                for images, targets in batch:
                    value = loss(model(images), targets) / len(batch)
                    value.backward()
                    finite *= value.detach().isfinite()
                optimiser.step()
                taken += 1
            if not finite:
                raise DivergedError(f"the loss of {model.name} became NaN or infinite")
            after_epoch(epoch + 1)
            epoch, taken = epoch + 1, 0


def adamw(model: Classifier, protocol: Protocol) -> torch.optim.AdamW:
    """Return AdamW that decays weights with more than one axis, but no biases and norms."""
    decayed: list[torch.nn.Parameter] = []
    spared: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_weight = "weight" in name and parameter.ndim > 1  # Swin's bias tables have two axes
        (decayed if is_weight else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": protocol.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=protocol.learning_rate)


def _resume(
    state: State | None, model: Classifier, optimiser: torch.optim.Optimizer, progress: Progress
) -> tuple[int, int]:
    """Put a kept state back; return the epoch and how many of its steps were taken."""
    if state is None:
        return 0, 0
    prefix = "model."
    weights = {name: value for name, value in state.tensors.items() if name.startswith(prefix)}
    model.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    restore_optimiser(optimiser, state.tensors)
    for name, values in state.facts["progress"].items():  # JSON knows no tuples
        setattr(progress, name, [tuple(x) if isinstance(x, list) else x for x in values])
    return state.facts["epoch"], state.facts["taken"]


@torch.no_grad()
def predict(model: Classifier, images: ImageSet) -> torch.Tensor:
    """Return the predicted classes ``(n,)`` of images."""
    model.eval()
    device = model.mean.device
    batches = images.batches(torch.arange(len(images)).split(images_per_pass(images.size)))
    return torch.cat([model(batch.to(device).float() / 255).argmax(1) for batch in batches]).cpu()


def accuracy(model: Classifier, images: ImageSet) -> tuple[float, list[float | None]]:
    """Return the share of images recognised, in all and by class (None if it has no images)."""
    return shares(predict(model, images), images)


def shares(predicted: torch.Tensor, images: ImageSet) -> tuple[float, list[float | None]]:
    """Return the share of right predictions ``(n,)``, in all and by class."""
    right = predicted == images.labels
    members = [images.of_class(label) for label in range(len(images.classes))]
    per_class = [float(right[own].float().mean()) if len(own) else None for own in members]
    return float(right.float().mean()), per_class


def confusion(predicted: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int]]:
    """Return how often each class ``(n,)`` was taken for each: true, predicted, images.

    Pairs that never occur are left out: a thousand classes have a million of them.
    """
    pairs, counts = torch.stack([labels.cpu(), predicted.cpu()], 1).unique(
        dim=0, return_counts=True
    )
    return [
        (true, taken, count)
        for (true, taken), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]


def watch(
    model: Classifier, test: ImageSet, protocol: Protocol
) -> tuple[Progress, Callable[[int], None]]:
    """Return a record of test accuracy and what fills it when the protocol says so."""
    progress = Progress()

    def after_epoch(epoch: int) -> None:
        if protocol.checked(epoch):
            predicted = predict(model, test)
            total, progress.per_class = shares(predicted, test)
            progress.confusion = confusion(predicted, test.labels)
            progress.curve.append((epoch, total))

    return progress, after_epoch


def train_teacher(
    model: Classifier,
    images: ImageSet,
    test: ImageSet,
    protocol: Protocol,
    *,
    flip: bool,
    seed: int,
    batch_size: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train a teacher on real images with hard labels (squeeze).

    Small images are moved and mirrored, larger ones cropped and mirrored, as is usual. A batch is
    128 images, or a tenth of a set too small for that, since a teacher needs steps to learn.
    """
    batch_size = batch_size or min(128, max(16, len(images) // 10))
    device, size = model.mean.device, images.size
    images, labels = images.to(device), images.labels.to(device)

    def batches(epoch: int) -> Iterator[list[MicroBatch]]:
        rng = random_generator(seed, "squeeze", model.name, epoch)
        order = torch.from_numpy(rng.permutation(len(images)))
        if size <= 64:
            views = padded_views(rng, len(images), size, pad=max(1, size // 8), flip=flip)
        else:
            views = random_views(rng, len(images), size, scale=(0.25, 1.0), flip=flip)
        parts = torch.arange(len(images)).split(batch_size)
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts = parts[:-1]  # one image alone has no batch statistics
        for part, pixels in zip(parts, images.batches(order[p] for p in parts), strict=True):
            own = labels[order[part].to(device)]
            yield [(render(pixels.to(device).float() / 255, views[part], size), own)]

    progress, after_epoch = watch(model, test, protocol)
    fit(
        model,
        batches,
        F.cross_entropy,
        protocol,
        after_epoch,
        f"teacher {model.name}",
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )
    return progress


def train_student(
    model: Classifier,
    data: DistilledSet,
    test: ImageSet,
    protocol: Protocol,
    *,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train a student on a distilled set, with the very batches its labels were made for.

    Hard and soft labels come with the same views in the same batches.
    """
    progress, after_epoch = watch(model, test, protocol)
    fit(
        model,
        lambda epoch: data.batches(epoch, model.mean.device, protocol.labels),
        F.cross_entropy if protocol.labels == "hard" else soft_loss(protocol.temperature),
        protocol,
        after_epoch,
        f"student {model.name}, seed {seed}",
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )
    return progress
