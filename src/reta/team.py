"""One teacher trained by several processes: ``torchrun --nproc-per-node 8 -m reta squeeze …``.

Every process draws the same batches and takes its share of each. Batch statistics and gradients
are added up over all of them, so a step is that of one process with the whole batch, up to
rounding: more processes change how long a teacher takes, not what is learned. BatchNorm over
shares alone would be faster, and would make the teacher depend on their number. Outside torchrun
a team has one member, and nothing is added up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from reta.models import Classifier

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes that train together.

    Attributes:
        rank: which of them this is; 0 leads.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, part: torch.Tensor) -> torch.Tensor:
        """Return what this process takes of a batch ``(m, …)``: every size-th image."""
        return part[self.rank :: self.size]

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes; gradients reach every one of them."""
        if self.size == 1:
            return value
        summed: torch.Tensor = _Sum.apply(value)
        return summed

    def add_up(self, model: Classifier) -> None:
        """Add up the gradients of all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message)
        parts = message.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def all_true(self, value: torch.Tensor) -> bool:
        """Return whether a 0 or 1 is 1 in every process."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return bool(value)

    def told(self, value: T) -> T:
        """Return the leader's value."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values)
        answer: T = values[0]
        return answer

    @contextmanager
    def normalising(self, model: Classifier) -> Iterator[None]:
        """Let BatchNorm in train mode normalise by the statistics of the whole batch."""
        layers = model.batch_norms() if self.size > 1 else []
        for layer in layers:
            layer.forward = _whole_batch(self).__get__(layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def here() -> Team:
    """Return the team this process is in."""
    if dist.is_available() and dist.is_initialized():
        return Team(dist.get_rank(), dist.get_world_size())
    return Team()


@contextmanager
def assembled(device: str = "auto") -> Iterator[Team]:
    """Join the processes that torchrun started, within the block; alone without it.

    Args:
        device: ``cpu`` for processes without GPUs (gloo); else each takes one GPU (nccl).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield here()
    finally:
        dist.destroy_process_group()


def leads() -> bool:
    """Return whether this is the first or only process that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class _Sum(torch.autograd.Function):
    """The sum over all processes, of values forwards and of gradients backwards."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _whole_batch(team: Team) -> Any:
    """Return a forward pass of BatchNorm over the images of all processes."""

    def forward(layer: nn.BatchNorm2d, inputs: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return nn.BatchNorm2d.forward(layer, inputs)
        values = inputs if inputs.dtype == torch.float64 else inputs.float()
        count = team.total(values.new_tensor(float(values[:, 0].numel())))
        mean = team.total(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        var = team.total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            step = layer.momentum if layer.momentum is not None else 0.1
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), step)
            layer.running_var.lerp_(var.to(layer.running_var.dtype) * count / (count - 1), step)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += 1
        scale = layer.weight * (var + layer.eps).rsqrt()
        return (centred * scale[:, None, None] + layer.bias[:, None, None]).to(inputs.dtype)

    return forward
