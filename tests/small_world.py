"""Images and teachers small enough to be quick, and no smaller: see the fixtures in conftest."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from reta.data.images import DecodedImages
from reta.models import Classifier, build, freeze
from reta.synthesis.engine import Engine

CLASSES, PER_CLASS, SIZE = 4, 9, 16


def make_images(classes: int, per_class: int, size: int, seed: int = 0) -> DecodedImages:
    """Return random images: each class has a pattern of its own, each image its own noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 1, 3, size, size, generator=generator)
    noise = torch.rand(classes, per_class, 3, size, size, generator=generator)
    images = (0.5 * patterns + 0.5 * noise).flatten(0, 1).mul(255).round().to(torch.uint8)
    labels = torch.arange(classes).repeat_interleave(per_class)
    shuffled = torch.randperm(len(labels), generator=generator)
    names = tuple(f"class{label}" for label in range(classes))
    return DecodedImages(images[shuffled], labels[shuffled], names)


def make_teacher(seed: int, classes: int = CLASSES, size: int = SIZE) -> Classifier:
    """Return a frozen ConvNet with decided logits and running statistics away from 0 and 1."""
    model = build("convnet3", classes, size, mean=(0.5, 0.45, 0.4), std=(0.2, 0.25, 0.3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.batch_norms():
        layer.running_mean.copy_(0.3 * torch.randn(layer.num_features, generator=generator))
        layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
        layer.weight.data.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
        layer.bias.data.copy_(0.2 * torch.randn(layer.num_features, generator=generator))
    model.head.weight.data.mul_(10)
    return freeze(model)


SMALL: dict[str, object] = {
    "steps": 2,
    "width": 8,
    "batch": 6,
    "matches": 1,
    "lessons": 2,
    "lesson": 12,
    "lesson_batch": 6,
    "experts": 2,
    "last_start": 2,
    "expert_epochs": 1,
    "student_steps": 3,
    "training": 2,
    "sampling": 4,
    "candidates": 2,
    "latent_rate": 0.1,
}
"""Settings of engines that make them quick, where an engine has them."""


def small(engine: Engine, **settings: object) -> Engine:
    """Return an engine with small networks, batches and budget, and other settings as given."""
    names = {field.name for field in fields(engine)}
    quick = {name: value for name, value in SMALL.items() if name in names}
    return replace(engine, **(quick | settings))
