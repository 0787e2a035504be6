"""What may explain the accuracy of a distilled set: how teachers see its images, and how real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from reta import models
from reta.config import Config
from reta.data.distilled import load
from reta.models import Classifier
from reta.preparation import open_data
from reta.squeeze import task_of
from reta.synthesis.pool import Pool, build_pool


@dataclass(frozen=True)
class World:
    """The real images of a setting as its teachers see them.

    Attributes:
        teachers: the committee, frozen.
        pool: the real training images under the first teacher.
    """

    teachers: list[Classifier]
    pool: Pool

    def features(self, label: int) -> torch.Tensor:
        """Return the unit features ``(m, d)`` of a class's real images."""
        return F.normalize(self.pool.features[self.pool.members(label)], dim=1)

    @property
    def candidates(self) -> int:
        """How many real images the poorest class has to choose from."""
        return int(self.pool.labels.bincount().min())


def world(config: Config, teachers: Sequence[str]) -> World:
    """Return the real side of a setting, read once for all its sets."""
    source = open_data(config)
    committee = [models.read(Path(path), task_of(source))[0] for path in teachers]
    return World(committee, build_pool(source.train, committee[0]))


@torch.no_grad()
def causes(folder: Path, real: World) -> dict[str, float]:
    """Return measures of the images of a run folder, each a mean over them.

    ``confidence``: the committee's mean probability of the class, of plain images.
    ``entropy``: of the committee's mean softmax, in nats.
    ``agreement``: share of images in which all teachers name the class.
    ``nearest_real``: distance on the unit sphere of the first teacher's features to the nearest
    real image of the class, as a multiple of the distance between a real image and its nearest.
    """
    data = load(folder, temperature=None)
    images = data.images.float() / 255
    logits = torch.stack([teacher(images) for teacher in real.teachers])  # (teachers, n, classes)
    probability = logits.softmax(-1).mean(0)
    own = F.normalize(real.teachers[0].features(images), dim=1)
    ratios = []
    for label in data.labels.unique():
        among = real.features(int(label))
        usual = torch.cdist(among, among).fill_diagonal_(torch.inf).min(1).values.mean()
        ratios.append(torch.cdist(own[data.labels == label], among).min(1).values / usual)
    return {
        "confidence": float(probability.gather(1, data.labels[:, None]).mean()),
        "entropy": float(-(probability * probability.clamp(min=1e-12).log()).sum(1).mean()),
        "agreement": float((logits.argmax(-1) == data.labels).all(0).float().mean()),
        "nearest_real": float(torch.cat(ratios).mean()),
    }
