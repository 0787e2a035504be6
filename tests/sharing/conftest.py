"""A real run folder, small enough to be quick: names with spaces and signs, order kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import reta

NAMES = ["cat & <dog>", "fish", 'owl, "grey"']


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and measured run; do not write into it, see `run`."""
    folder = tmp_path_factory.mktemp("sharing")
    rng = np.random.default_rng(0)
    for shade, name in enumerate(NAMES):
        for index in range(10):
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(60 * shade, 60 * shade + 100, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
    run = reta.distill(
        folder / "photos",
        folder / "run",
        effort="smoke",
        ipc=2,
        steps=4,
        teachers=("convnet3",),
        teacher_epochs=1,
        label_epochs=2,
        image_size=16,
    )
    reta.train(run, students=1)
    return run
