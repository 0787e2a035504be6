"""The one training loop, for teachers on real images and students on distilled ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F

from reta.checkpoint import Checkpoint, State, optimiser_tensors, restore_optimiser
from reta.data.augment import padded_views, random_views, render
from reta.data.distilled import DistilledSet, MicroBatch
from reta.data.images import ImageSet
from reta.errors import DataError, DivergedError
from reta.interruption import check
from reta.memory import Passes, as_memory_limit
from reta.models import Classifier, batch_statistics, can_group, preferred_layout
from reta.progress import track
from reta.runtime import (
    autocast,
    images_per_pass,
    mixed_precision,
    random_generator,
    seeded,
    teacher_precision,
    torch_seed,
)
from reta.team import here
from reta.tracking import note

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
        labels: soft: the committee's; hard: the class of the image and of its CutMix partner, by
            cross-entropy.
        loss: of soft labels: the KL divergence at T, or the mean squared error of the logits.
        hard_weight: weight of the hard labels' cross-entropy beside the soft labels.
        checks: when test accuracy is measured: after each fifth of the epochs; or, as FADRM does,
            after every tenth epoch of the last fifth; and after the last epoch.
        smoothing: share of hard labels that is spread over all classes.
        ema: decay of the running mean of the weights that is kept in their place; 0: none.
    """

    epochs: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    stretch: float = 1.0
    temperature: float = 20.0
    labels: Literal["soft", "hard"] = "soft"
    loss: Literal["kl", "mse"] = "kl"
    hard_weight: float = 0.0
    checks: Literal["fifths", "end"] = "fifths"
    smoothing: float = 0.0
    ema: float = 0.0

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
        held_out: epochs finished and accuracy on training images that were held out, if any.
        per_class: last accuracy of each class.
        confusion: last ``(true class, predicted class, images)``, where there are any.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
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


def student_loss(protocol: Protocol) -> Loss:
    """Return what a student is trained with; soft and hard labels lie side by side if both are."""
    if protocol.labels == "hard":
        return F.cross_entropy
    soft = F.mse_loss if protocol.loss == "mse" else soft_loss(protocol.temperature)
    if not protocol.hard_weight:
        return soft

    def both(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        said, known = targets.chunk(2, dim=1)
        return soft(logits, said) + protocol.hard_weight * F.cross_entropy(logits, known)

    return both


def fit(
    model: Classifier,
    batches: Batches,
    loss: Loss,
    protocol: Protocol,
    after_epoch: Callable[[int], bool | None],
    description: str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    short: torch.dtype | None = None,
) -> None:
    """Train a model in place.

    Args:
        model: on its device.
        batches: for an epoch, its batches, each a list of micro-batches. A micro-batch is one
            forward pass, so one set of batch statistics; a batch is one optimiser step.
        loss: of logits and targets.
        protocol: rates and epochs.
        after_epoch: called with the number of epochs finished; training stops if it says True.
        description: for the progress bar.
        seed: of dropout.
        progress: what ``after_epoch`` fills, to be kept with the state.
        checkpoint: keeps the state of the work, so that it can be interrupted.
        short: number format of the passes, if not float32; not used after a loss that diverged.

    Raises:
        DivergedError: if the loss becomes NaN or infinite.
    """
    checkpoint, progress = checkpoint or Checkpoint(), progress or Progress()
    protocol = replace(protocol, learning_rate=protocol.learning_rate * checkpoint.caution)
    model.to(memory_format=preferred_layout(model))
    optimiser = adamw(model, protocol)
    average = _Average(model, protocol.ema) if protocol.ema else None
    kept = checkpoint.load()
    epoch, taken = _resume(kept, model, optimiser, progress)  # the next step
    if average and kept:
        average.load(kept.tensors)
    device = model.mean.device
    short = None if checkpoint.failures else short

    def state() -> State:
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= average.tensors() if average else {}
        facts = {"epoch": epoch, "taken": taken, "progress": asdict(progress)}
        return State(tensors | optimiser_tensors(optimiser), facts)

    team, grouped = here(), can_group(model)
    finite = torch.ones((), device=device)  # looked at rarely: reading it is a wait
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
                for value in _losses(model, batch, loss, short, grouped):
                    value.backward()
                    finite *= value.detach().isfinite()
                team.add_up(model)
                optimiser.step()
                if average:
                    average.update(model)
                taken += 1
            if not team.all_true(finite):
                raise DivergedError(f"the loss of {model.name} became NaN or infinite")
            with average.shown(model) if average else nullcontext():
                enough = after_epoch(epoch + 1)
            epoch, taken = epoch + 1, 0
            if enough:
                break
    if average:
        model.load_state_dict(average.weights)
    model.to(memory_format=torch.contiguous_format)  # as it came: others may save its weights


def _losses(
    model: Classifier,
    batch: Sequence[MicroBatch],
    loss: Loss,
    short: torch.dtype | None,
    grouped: bool,
) -> Iterator[torch.Tensor]:
    """Yield what adds up to the mean loss of a batch, a forward pass at a time.

    Micro-batches of one size share a pass, each under its own batch statistics.
    """
    device, share = batch[0][0].device, 1 / len(batch)
    sizes = {len(images) for images, _ in batch}
    if len(batch) == 1 or len(sizes) > 1 or not grouped:
        for images, targets in batch:
            with autocast(device, short):
                logits = model(images)
            yield loss(logits, targets) * share
        return
    (size,) = sizes
    with (
        batch_statistics(model, size, running=True),
        autocast(device, short),
    ):
        logits = model(torch.cat([images for images, _ in batch]))
    each = zip(logits.split(size), batch, strict=True)
    yield torch.stack([loss(own, targets) for own, (_, targets) in each]).sum() * share


class _Average:
    """The running mean of a model's weights and statistics: m ← d·m + (1 − d)·w after each step.

    Early on the decay is smaller, (1 + n) / (10 + n) after n steps, so that short trainings do not
    end near where they began.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: Classifier) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def shown(self, model: Classifier) -> Iterator[None]:
        """Let a model have the mean weights while it is measured."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def tensors(self) -> dict[str, torch.Tensor]:
        weights = {f"mean.{name}": value for name, value in self.weights.items()}
        return weights | {"mean": torch.tensor(self.steps)}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.steps = int(tensors["mean"])
        for name, value in self.weights.items():
            value.copy_(tensors[f"mean.{name}"])


def adamw(model: Classifier, protocol: Protocol) -> torch.optim.AdamW:
    """Return AdamW that decays weights with more than one axis, but no biases and norms."""
    decayed: list[torch.nn.Parameter] = []
    spared: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        axes = parameter.ndim - model.stacked
        is_weight = "weight" in name and axes > 1  # Swin's bias tables have two axes
        (decayed if is_weight else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": protocol.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=protocol.learning_rate, fused=True)


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
def predict(
    model: Classifier, images: ImageSet, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the predicted classes ``(n,)`` of images, all by default."""
    model.eval()
    device = model.mean.device
    chosen = torch.arange(len(images)) if indices is None else indices
    passes, found = Passes(images.size), []

    def answers(pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(pixels.to(device).float() / 255)
        return logits.argmax(1).cpu()

    for batch in images.batches(chosen.split(images_per_pass(images.size))):
        found += passes.of(answers, batch)
    return torch.cat(found)


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
            _measure(progress, model, test, epoch)

    return progress, after_epoch


def _measure(progress: Progress, model: Classifier, test: ImageSet, epoch: int) -> None:
    predicted = predict(model, test)
    total, progress.per_class = shares(predicted, test)
    progress.confusion = confusion(predicted, test.labels)
    progress.curve.append((epoch, total))
    note(epoch, {"test_accuracy": total})


def train_teacher(
    model: Classifier,
    images: ImageSet,
    test: ImageSet,
    protocol: Protocol,
    *,
    flip: bool,
    seed: int,
    batch_size: int | None = None,
    target: float | None = None,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train a teacher on real images with hard labels (squeeze).

    Small images are moved and mirrored, larger ones cropped and mirrored, as is usual. A batch is
    128 images, or a tenth of a set too small for that, since a teacher needs steps to learn. The
    images lie on the model's device, unless they are streamed. The processes of a `team` share
    every batch.

    Args:
        model: on its device.
        images: to learn from.
        test: to measure on; chooses nothing.
        protocol: rates and epochs.
        flip: whether mirroring keeps the meaning of the images.
        seed: of the run.
        batch_size: images per step.
        target: accuracy at which training stops, measured after each epoch on a tenth of each
            class of ``images`` that is then not learned from. Over-trained teachers distil worse.
        checkpoint: keeps the state of the work, so that it can be interrupted.
    """
    team = here()
    learned, held = _held_out(images.labels, seed) if target is not None else (None, None)
    count = len(images) if learned is None else len(learned)
    batch_size = batch_size or min(128, max(16, count // 10))
    device, size = model.mean.device, images.size
    images, labels = images.to(device), images.labels.to(device)

    def batches(epoch: int) -> Iterator[list[MicroBatch]]:
        rng = random_generator(seed, "squeeze", model.name, epoch)
        order = torch.from_numpy(rng.permutation(count))
        if learned is not None:
            order = learned[order]
        if size <= 64:
            views = padded_views(rng, count, size, pad=max(1, size // 8), flip=flip)
        else:
            views = random_views(rng, count, size, scale=(0.25, 1.0), flip=flip)
        parts = torch.arange(count).split(batch_size)
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts = parts[:-1]  # one image alone has no batch statistics
        parts = tuple(team.share(part) for part in parts)
        for part, pixels in zip(parts, images.batches(order[p] for p in parts), strict=True):
            own = labels[order[part].to(device)]
            yield [(render(pixels.to(device).float() / 255, views[part], size), own)]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if team.size == 1:
            return F.cross_entropy(logits, targets, label_smoothing=protocol.smoothing)
        summed = F.cross_entropy(
            logits, targets, label_smoothing=protocol.smoothing, reduction="sum"
        )
        return summed / team.total(summed.new_tensor(float(len(targets))))

    progress, after_epoch = watch(model, test, protocol)

    def enough(epoch: int) -> bool:
        after_epoch(epoch)
        if held is None or target is None:
            return False
        right = predict(model, images, held) == labels[held.to(device)].cpu()
        progress.held_out.append((epoch, float(right.float().mean())))
        if progress.held_out[-1][1] < target:
            return False
        if not progress.curve or progress.curve[-1][0] != epoch:
            _measure(progress, model, test, epoch)
        return True

    unfit = (
        f"a batch of {batch_size} images of {size} px does not fit into memory while teacher "
        f"{model.name} is trained, and a smaller one would be another training; choose smaller "
        "--teachers, lower --image-size, or use a device with more memory"
    )
    with team.normalising(model), as_memory_limit(unfit):
        fit(
            model,
            batches,
            loss,
            protocol,
            enough,
            f"teacher {model.name}",
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            short=teacher_precision(device)[0],
        )
    return progress


def _held_out(labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices to learn from and those held out: a tenth of each class, at least one.

    A class of a single image is only learned.
    """
    rng = random_generator(seed, "squeeze", "held out")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten()
        few = max(1, len(own) // 10) if len(own) > 1 else 0
        held[own[torch.from_numpy(rng.permutation(len(own))[:few])]] = True
    if not held.any():
        raise DataError("too few images to hold some out: leave the target accuracy open")
    return (~held).nonzero().flatten(), held.nonzero().flatten()


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
    both = protocol.labels == "soft" and protocol.hard_weight > 0
    unfit = (
        f"a batch of labelled views does not fit into memory while student {model.name} is "
        "trained, and its size is that of the labels; choose a smaller --student, or use a device "
        "with more memory"
    )
    with as_memory_limit(unfit):
        fit(
            model,
            lambda epoch: data.batches(
                epoch, model.mean.device, "both" if both else protocol.labels
            ),
            student_loss(protocol),
            protocol,
            after_epoch,
            f"student {model.name}, seed {seed}",
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            short=mixed_precision(model.mean.device)[0],
        )
    return progress
