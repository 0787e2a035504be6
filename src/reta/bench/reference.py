"""FADRM's published algorithm, written as plainly as it is published: the baseline of the bench.

One image of each class at a time, a hook on every BatchNorm layer that copies what enters it, one
teacher per step, crops by torchvision, on a GPU in float16 with a loss scale that adapts; labels in
halves of a batch of 16; students from files.
Facts: https://github.com/Jiacheng8/FADRM at f445e38. No line of it was copied.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as transforms
from PIL import Image
from torch import nn

from reta.models import Classifier
from reta.tensors import png_bytes
from reta.training import soft_loss


class CopyingHook:
    """What FADRM hangs on a BatchNorm layer: it transposes and copies what enters."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.gap: torch.Tensor | None = None
        self.handle = layer.register_forward_hook(self._read)

    def _read(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        (x,) = inputs
        mean = x.mean([0, 2, 3])
        rows = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1)
        variance = rows.var(1, unbiased=False)
        self.gap = torch.norm(layer.running_var - variance, 2) + torch.norm(
            layer.running_mean - mean, 2
        )


def hooked_loss(
    teacher: Classifier, hooks: Sequence[CopyingHook], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return cross-entropy plus 0.01 times the gaps of all layers, the first one tenfold."""
    loss = F.cross_entropy(teacher(images), labels)
    for index, hook in enumerate(hooks):
        assert hook.gap is not None
        loss = loss + 0.01 * (10 if index == 0 else 1) * hook.gap
    return loss


class ReferenceRecover:
    """FADRM's optimisation of the pixels, group after group."""

    def __init__(self, committee: Sequence[Classifier], pixels: torch.Tensor, size: int) -> None:
        """Begin from normalised pixels ``(ipc, classes, 3, s, s)``."""
        self.committee = list(committee)
        self.hooks = [[CopyingHook(layer) for layer in t.batch_norms()] for t in committee]
        self.groups = [group.clone().requires_grad_() for group in pixels]
        self.optimisers = [torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9)) for x in self.groups]
        self.scalers = [torch.amp.GradScaler(enabled=x.is_cuda) for x in self.groups]
        self.augment = transforms.Compose(
            [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
        )
        mean, std = committee[0].mean, committee[0].std
        self.mean, self.std = mean, std
        self.labels = torch.arange(pixels.shape[1], device=pixels.device)
        self.size = size

    def steps(self, count: int) -> None:
        """Take some steps, a teacher each in turn."""
        for x, optimiser, scaler in zip(self.groups, self.optimisers, self.scalers, strict=True):
            for step in range(count):
                turn = step % len(self.committee)
                view = self.augment(x)
                shift = np.random.default_rng(step).integers(0, 5, 2).tolist()
                view = torch.roll(view, shift, (2, 3)) * self.std + self.mean
                optimiser.zero_grad()
                with torch.autocast(x.device.type, torch.float16, enabled=x.is_cuda):
                    loss = hooked_loss(self.committee[turn], self.hooks[turn], view, self.labels)
                scaler.scale(loss).backward()
                scaler.step(optimiser)
                scaler.update()
                for channel in range(3):
                    low = -self.mean[0, channel, 0, 0] / self.std[0, channel, 0, 0]
                    high = (1 - self.mean[0, channel, 0, 0]) / self.std[0, channel, 0, 0]
                    x.data[:, channel] = torch.clamp(x.data[:, channel], low, high)

    def close(self) -> None:
        """Take the hooks off."""
        for hook in (hook for hooks in self.hooks for hook in hooks):
            hook.handle.remove()


def _view(encoded: bytes, cut: Callable[[Any], Any]) -> torch.Tensor:
    """Decode a PNG and cut a view from it, as a loader's worker does."""
    image = cut(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


class ReferenceTraining:
    """Labels and students in batches of 16, in halves of 8, from encoded images."""

    def __init__(self, images: torch.Tensor, ready: bool = False) -> None:
        """Take images ``(n, 3, s, s)`` uint8.

        Args:
            images: to learn from.
            ready: draw the views of a batch once, as if a loader's workers were never late. Beside
                a GPU there are cores for them; two cores have other work.
        """
        self.files = [png_bytes(image) for image in images]
        self.ready: dict[int, torch.Tensor] | None = {} if ready else None
        size = images.shape[-1]
        self.cut = transforms.Compose(
            [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
        )

    def views(self, begin: int, device: torch.device) -> torch.Tensor:
        """Return a batch of 16 views, mixed with one another."""
        if self.ready is None:
            return self._drawn(begin, device)
        if begin not in self.ready:
            self.ready[begin] = self._drawn(begin, device)
        return self.ready[begin]

    def _drawn(self, begin: int, device: torch.device) -> torch.Tensor:
        files = self.files[begin : begin + 16]
        views = torch.stack([_view(encoded, self.cut) for encoded in files]).to(device)
        mixed, half = views.clone(), views.shape[-1] // 2
        mixed[:, :, :half, :half] = views.flip(0)[:, :, :half, :half]
        return mixed

    @torch.no_grad()
    def relabel(self, committee: Sequence[Classifier]) -> list[bytes]:
        """Return the labels of one epoch, a file for each batch."""
        saved = []
        for begin in range(0, len(self.files), 16):
            views = self.views(begin, committee[0].mean.device)
            answers = [
                torch.cat([teacher(part) for part in views.split(8)]) for teacher in committee
            ]
            buffer = io.BytesIO()
            np.save(buffer, torch.stack(answers).mean(0).half().cpu().numpy())
            saved.append(buffer.getvalue())
        return saved

    def train(self, student: Classifier, labels: Sequence[bytes]) -> float:
        """Train a student for one epoch and return its loss."""
        optimiser, loss, total = torch.optim.AdamW(student.parameters()), soft_loss(20.0), 0.0
        student.train()
        for index, begin in enumerate(range(0, len(self.files), 16)):
            views = self.views(begin, student.mean.device)
            targets = torch.from_numpy(np.load(io.BytesIO(labels[index]))).float()
            optimiser.zero_grad()
            parts = zip(views.split(8), targets.to(views.device).split(8), strict=True)
            for part, target in parts:
                value = loss(student(part), target) / 2
                value.backward()
                total += value.item()
            optimiser.step()
        return total
