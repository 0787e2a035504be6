"""The one training loop, for teachers on real images and students on distilled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import islice

import torch

from reta.checkpoint import Checkpoint, State, optimiser_tensors, restore_optimiser
from reta.data.distilled import MicroBatch
from reta.errors import DivergedError
from reta.interruption import check
from reta.models import Classifier, batch_statistics, can_group, preferred_layout
from reta.progress import track
from reta.runtime import autocast, seeded, torch_seed
from reta.team import here
from reta.training.protocol import Loss, Progress, Protocol

Batches = Callable[[int], Iterable[list[MicroBatch]]]


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
