"""G-VBSM and EDC: their objectives against numpy, what they remember, and resuming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plain import cross_entropy, inside
from reta.interruption import Interrupted
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.edc import ClasswiseMatching
from reta.synthesis.gvbsm import GeneralizedMatching
from reta.synthesis.layers import LayerProbe, patch_statistics, real_statistics
from reta.synthesis.loop import Recovery, Settings, recover
from reta.synthesis.matching import Scene, Turn
from reta.synthesis.pool import Pool
from reta.synthesis.probes import probe
from small_world import CLASSES, PER_CLASS, SIZE
from stopping import Stopping

LABELS = torch.arange(2).repeat_interleave(3)


def random_images(seed: int, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, count, 3, SIZE, SIZE, generator=generator)


def patches(x: np.ndarray) -> list[np.ndarray]:
    """Mean and variance of each 4×4 patch, by loops; the maps here are multiples of 4."""
    rows = [
        x[:, :, top : top + 4, left : left + 4]
        for top in range(0, x.shape[2], 4)
        for left in range(0, x.shape[3], 4)
    ]
    return [np.array([row.mean() for row in rows]), np.array([row.var() for row in rows])]


def by_hand(layer: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    found = [x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))]
    return found + patches(x) if isinstance(layer, nn.Conv2d) else found


def real(pool: Pool, teacher: Classifier, indices: torch.Tensor) -> list[list[np.ndarray]]:
    return [by_hand(layer, x) for layer, x in inside(teacher, pool.pixels(indices)).entering]


def whole_targets(pool: Pool, teacher: Classifier) -> list[list[np.ndarray]]:
    found = real(pool, teacher, torch.arange(len(pool.labels)))
    layers = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d | nn.Conv2d)]
    return [
        [layer.running_mean.numpy(), layer.running_var.numpy()]
        if isinstance(layer, nn.BatchNorm2d)
        else own
        for layer, own in zip(layers, found, strict=True)
    ]


def total(
    batches: list[torch.Tensor], teacher: Classifier, sides: list[list[list[np.ndarray]]]
) -> tuple[float, float]:
    """Loss and gap of the last batch, after the ones before: running means in numpy."""
    memory: list[list[np.ndarray]] = []
    for batch in batches:
        seen = inside(teacher, batch[0])
        now = [by_hand(layer, x) for layer, x in seen.entering]
        memory = [
            [0.8 * old + 0.2 * new for old, new in zip(kept, own, strict=True)]
            for kept, own in zip(memory or now, now, strict=True)
        ]
        gap = 0.0
        for targets in sides:
            for index, (wanted, own) in enumerate(zip(targets, memory, strict=True)):
                norms = [np.linalg.norm(a - b) for a, b in zip(wanted, own, strict=True)]
                gap += (10 if index == 0 else 1) * sum(norms) / len(sides)
    return cross_entropy(seen.logits, LABELS.numpy()) + 0.01 * gap, gap


def take(matcher, batches: list[torch.Tensor]) -> tuple[float, float]:
    for step, batch in enumerate(batches):
        loss, gap, news = matcher(batch, Turn(step, LABELS, range(1)))
        matcher.remember([news])
    return loss.item(), gap.item()


def scene(committee: list[Classifier], pool: Pool) -> Scene:
    return Scene([probe(one) for one in committee], pool, [0, 1], 3, seed=0)


def test_the_objective_of_g_vbsm_by_hand(committee: list[Classifier], pool: Pool) -> None:
    """A layer, a patch or a weight missed; a running mean that forgets or has the gradient."""
    objective = GeneralizedMatching(drop=0.0, density=0.0)
    batches = [random_images(seed) for seed in range(3)]
    expected = total(batches, committee[0], [whole_targets(pool, committee[0])])
    found = take(objective.at_work(scene(committee[:1], pool)), batches)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_objective_of_edc_by_hand(committee: list[Classifier], pool: Pool) -> None:
    """Half to the whole data, half to the mean over the batch of its classes' statistics."""
    batches = [random_images(seed) for seed in range(3)]
    each = [real(pool, committee[0], pool.members(label)) for label in (0, 1)]
    own = [
        [np.mean(pair, axis=0) for pair in zip(*layers, strict=True)]
        for layers in zip(*each, strict=True)
    ]
    expected = total(batches, committee[0], [whole_targets(pool, committee[0]), own])
    found = take(ClasswiseMatching().at_work(scene(committee[:1], pool)), batches)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_that_at_the_running_mean(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Through (1 − α)·s alone it would be a fifth of it."""
    matcher = GeneralizedMatching(drop=0.0, density=0.0).at_work(
        scene(double_committee[:1], double_pool)
    )
    first, second = random_images(0).double(), random_images(1).double().requires_grad_()
    take(matcher, [first])
    kept = {key: value.clone() for key, value in matcher.tensors().items()}
    _, gap, _ = matcher(second, Turn(1, LABELS, range(1)))
    (gradient,) = torch.autograd.grad(gap.sum(), second)
    direction = torch.randn(second.shape, generator=torch.Generator().manual_seed(2)).double()
    # The constant part of s̃ = α·m + (1 − α)·s + (s' − s), with s frozen and s' moving.
    layer_probe = LayerProbe(double_committee[0], 4)
    with torch.no_grad():
        _, frozen = layer_probe(second)

        def at(distance: float) -> float:
            _, moved = layer_probe(second + distance * direction)
            result = 0.0
            for layer, statistics in moved.items():
                for part, value in enumerate(statistics):
                    still = frozen[layer][part]
                    blend = 0.8 * kept[f"0.{layer}.{part}"] + 0.2 * still + value - still
                    wanted = matcher.targets(0)[layer][part]
                    result += (10 if layer == 0 else 1) * float((blend - wanted).norm())
            return result

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_the_eigenvalue_term_by_hand(committee: list[Classifier], pool: Pool) -> None:
    """Eigenvalues in numpy; nothing where a class has one image."""
    with_term, without = (
        GeneralizedMatching(drop=0.0, density=density).at_work(scene(committee[:1], pool))
        for density in (2.0, 0.0)
    )
    # Near the mean the eigenvalues are small, so that the largest does not take it all.
    images = committee[0].mean + 0.12 * (random_images(4) - 0.5)
    turn = Turn(0, LABELS, range(1))
    found = (with_term(images, turn)[0] - without(images, turn)[0]).item()
    mean, std = committee[0].mean.numpy()[0], committee[0].std.numpy()[0]
    expected = 0.0
    for label in (0, 1):
        rows = ((images[0].numpy()[LABELS.numpy() == label] - mean) / std).reshape(3, -1)
        eigenvalues = np.linalg.eigvalsh(rows @ rows.T)
        one = np.exp(eigenvalues / 4 - (eigenvalues / 4).max())
        other = np.exp(eigenvalues - eigenvalues.max())
        one, other = one / one.sum(), other / other.sum()
        expected += 2 * float((one * (np.log(one) - np.log(other))).sum())
    assert expected > 0.02
    assert found == pytest.approx(expected, rel=1e-3)
    single = Turn(0, torch.arange(2), range(1))
    pair = random_images(5, 2)
    assert with_term(pair, single)[0].item() == without(pair, single)[0].item()


def test_convolutions_are_left_out_at_random(committee: list[Classifier], pool: Pool) -> None:
    """Never a BatchNorm; about two in five convolutions; the same ones when a step is repeated."""
    matcher = GeneralizedMatching().at_work(scene(committee, pool))
    layers = LayerProbe(committee[0], 4).layers
    lost = [matcher.dropped(0, step) for step in range(200)]
    assert lost == [matcher.dropped(0, step) for step in range(200)]
    assert all(isinstance(layers[one], nn.Conv2d) for own in lost for one in own)
    count = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    assert sum(map(len, lost)) / (200 * count) == pytest.approx(0.4, abs=0.08)


def test_real_statistics_are_those_of_all_images_at_once(
    committee: list[Classifier], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of batch variances lose what lies between the batches."""
    monkeypatch.setattr("reta.memory.images_per_pass", lambda size: 7)
    layer_probe = LayerProbe(committee[0], 4)
    found = real_statistics(layer_probe, pool, torch.arange(PER_CLASS * CLASSES))
    for position, wanted in enumerate(real(pool, committee[0], torch.arange(len(pool.labels)))):
        for one, other in zip(found[position], wanted, strict=True):
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-4, atol=1e-6)


def test_patches_of_maps_that_are_no_multiple_are_resized() -> None:
    """A 3×5 map is brought to 4×8, two patches; groups are kept apart."""
    maps = torch.rand(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    mean, variance = patch_statistics(maps, 2, 4)
    assert mean.shape == variance.shape == (2, 2)
    torch.testing.assert_close(patch_statistics(maps[2:], 1, 4)[0][0], mean[1])


@pytest.mark.parametrize("method", ["g-vbsm", "edc", "cv-dd", "wmdd", "delt", "nrr-dd"])
@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_block_ends_with_the_same_bytes(
    method: str, after: int, committee: list[Classifier], pool: Pool
) -> None:
    """A running mean that is not kept, or is kept twice."""
    recipe = METHODS[method]
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=6))
    expected = recover(recipe, committee, pool, range(CLASSES), Settings(2)).images
    checkpoint = Stopping(after)
    with pytest.raises(Interrupted):
        recover(recipe, committee, pool, range(CLASSES), Settings(2), checkpoint)
    checkpoint.steps = 1000
    again = recover(recipe, committee, pool, range(CLASSES), Settings(2), checkpoint)
    assert torch.equal(again.images, expected)


def test_a_batch_holds_whole_classes(committee: list[Classifier], pool: Pool) -> None:
    """A hundred images: at 40 images per class two classes, and the last batch one."""
    made = Recovery(METHODS["g-vbsm"], committee, pool, [0, 2, 3], Settings(40))
    passes = made.batches.passes(40, 1)
    assert [len(range(3)[where[1]]) for where, _ in passes] == [2, 1]
    images, labels = made.batches.grouped(
        made.canvas.pixels[passes[0][0]], passes[0][0], made.targets
    )
    assert images.shape[:2] == (1, 80)
    assert labels.tolist() == [0] * 40 + [2] * 40
    assert torch.equal(images[0, 41], made.canvas.pixels[1, 1])
