"""NRR-DD: the class activation map in closed form, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.methods import METHODS
from reta.models import Classifier, wrap
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.nrrdd import CriticalPatches, CriticalRegions, activation_maps
from reta.synthesis.pool import Pool
from small_world import CLASSES, SIZE


def last_plane(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    hidden = (images - teacher.mean) / teacher.std
    for block in list(teacher.trunk)[:3]:
        hidden = block(hidden)
    return hidden


def test_the_map_of_a_pooled_network_is_cam(committee: list[Classifier]) -> None:
    """Grad-CAM is Σ_k w_yk A_k up to a factor; another class's weights, or no relu."""
    teacher = committee[0]
    images = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    maps, logits = activation_maps(teacher, images, labels)
    with torch.no_grad():
        plane = last_plane(teacher, images)
        cam = torch.einsum("nk,nkhw->nhw", teacher.head.weight[labels], plane).relu()
        cam = F.interpolate(cam[:, None], (SIZE, SIZE), mode="bilinear")[:, 0]
        low, high = cam.amin((1, 2), True), cam.amax((1, 2), True)
        torch.testing.assert_close(maps, (cam - low) / (high - low).clamp(min=1e-9))
        torch.testing.assert_close(logits, teacher(images))


def test_critical_pixels_stay_and_the_others_move(committee: list[Classifier], pool: Pool) -> None:
    """A mask upside down, of another image, or forgotten after a step."""
    recipe = METHODS["nrr-dd"]
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=4))
    made = Recovery(recipe, committee, pool, [0, 2, 3], Settings(2))
    result = made.run()
    start, end = (frame.float() for frame in (result.frames[0], result.images))
    for position, label in enumerate([0, 2, 3]):
        for image in range(2):
            shown = start[position, image][None] / 255
            maps, _ = activation_maps(committee[0], shown, torch.tensor([label]))
            moved = (start - end)[position, image].abs().amax(dim=0)
            # The map of the 8-bit start is nearly that of the start: near the threshold either.
            assert moved[maps[0] >= 0.52].sum() == 0
            assert (moved[maps[0] < 0.48] > 0).float().mean() > 0.6  # four crops reach most of it


def test_crops_are_judged_by_what_the_teacher_looks_at(committee: list[Classifier]) -> None:
    """Within an image the most critical crop; between images the least sure of the right ones."""
    crops = torch.rand(9, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    within, between = CriticalPatches().judge(committee[0], crops, 1)
    maps, logits = activation_maps(committee[0], crops, torch.full((9,), 1))
    shares = [float((one >= 0.5).float().mean()) for one in maps]
    np.testing.assert_allclose(-within.numpy(), shares, atol=1e-6)
    right = logits.argmax(1) == 1
    confidence = logits.softmax(1)[:, 1]
    order = sorted(range(9), key=lambda i: (not right[i], float(confidence[i])))
    assert between.argsort(stable=True).tolist() == order


def test_a_network_without_planes_is_refused() -> None:
    """No map can be drawn of a flattened image."""
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, CLASSES))
    model = wrap(flat, CLASSES, SIZE, name="flat").eval().requires_grad_(False)
    images = torch.rand(2, CLASSES, 3, SIZE, SIZE)
    with pytest.raises(UsageError, match="flat"):
        CriticalRegions().free(model, images, torch.arange(CLASSES))
