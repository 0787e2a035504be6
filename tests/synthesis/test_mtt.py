"""Trajectory matching: the unrolled student against plain SGD, finite differences, its experts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.engine import Settings, Work
from reta.synthesis.loop import recover
from reta.synthesis.mtt import TrajectoryMatching, classify, trajectory_gap
from reta.synthesis.pool import Pool
from small_world import CLASSES

ENGINE = TrajectoryMatching(
    steps=3, width=4, batch=9, experts=2, last_start=2, expert_epochs=1, student_steps=4, crop=None
)


def block(committee: list[Classifier], pool: Pool, ipc: int = 2) -> Work:
    return Work(committee, pool, range(CLASSES), Settings(ipc), METHODS["mtt"].start)


def test_a_student_walks_as_sgd_does(double_committee, double_pool) -> None:
    """Breaks when the unrolled steps are not those of SGD on the same images and weights."""
    work = block(double_committee, double_pool)
    network = ENGINE.network(work, "test").double()
    images = work.pool.pixels(torch.arange(8)).double()
    labels = torch.arange(CLASSES).repeat_interleave(2)
    begun = parameters_to_vector(network.parameters()).detach().clone()
    wanted = begun + 0.1 * torch.randn(
        begun.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    rate = torch.tensor(0.05, dtype=torch.float64)
    found = ENGINE.loss(work, network, images, rate, begun, wanted, 0)
    plain = copy.deepcopy(network)
    vector_to_parameters(begun.clone(), plain.parameters())
    optimiser = torch.optim.SGD(plain.parameters(), 0.05)
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimiser.step()
    ends = parameters_to_vector(plain.parameters()).detach().numpy()
    expected = ((ends - wanted.numpy()) ** 2).sum() / ((begun - wanted).numpy() ** 2).sum()
    assert np.isclose(float(found.detach()), expected, rtol=1e-9)


def test_pixels_and_rate_get_the_gradient_of_the_gap(double_committee, double_pool) -> None:
    """Breaks when a step of the student is cut off the graph; compared with finite differences."""
    work = block(double_committee, double_pool)
    network = ENGINE.network(work, "test").double().requires_grad_(False)
    images = work.pool.pixels(torch.arange(8)).double().requires_grad_()
    rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    begun = parameters_to_vector(network.parameters()).detach().clone()
    noise = torch.Generator().manual_seed(1)
    wanted = begun + 0.1 * torch.randn(begun.shape, dtype=torch.float64, generator=noise)

    def gap(pixels: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return ENGINE.loss(work, network, pixels, alpha, begun, wanted, 0)

    at_pixels, at_rate = torch.autograd.grad(gap(images, rate), [images, rate])
    step, place = 1e-5, (3, 1, 6, 9)
    ends = []
    for sign in (1, -1):
        moved = images.detach().clone()
        moved[place] += sign * step
        ends.append(float(gap(moved, rate).detach()))
    assert np.isclose(float(at_pixels[place]), (ends[0] - ends[1]) / (2 * step), rtol=1e-3)
    sides = [float(gap(images, rate + sign * 1e-6).detach()) for sign in (1, -1)]
    assert np.isclose(float(at_rate), (sides[0] - sides[1]) / 2e-6, rtol=1e-4)


def test_the_gap_is_1_where_nothing_was_learned_and_0_at_the_goal() -> None:
    """Breaks when the distance is not relative to how far the expert went."""
    begun, wanted = torch.zeros(5), torch.arange(5.0)
    assert float(trajectory_gap(begun, wanted, begun)) == 1
    assert float(trajectory_gap(wanted, wanted, begun)) == 0


def test_a_network_answers_at_other_weights(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when weights are cut at the wrong places, or the network's own have a say."""
    work = block(committee, pool)
    one, other = ENGINE.network(work, "one"), ENGINE.network(work, "other")
    images = pool.pixels(torch.arange(3))
    found = classify(one, parameters_to_vector(other.parameters()), images)
    assert torch.allclose(found, other(images), atol=1e-6)


def test_experts_learn_and_differ(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when trajectories are no way anywhere, or all experts are one."""
    engine = replace(ENGINE, width=8, last_start=6, expert_rate=0.05)
    work = block(committee, pool)
    laid = [engine.lay(index, work)["trajectory"] for index in range(2)]
    network = engine.network(work, "test")
    count = sum(weight.numel() for weight in network.parameters())
    assert laid[0].shape == (7, count)  # the start, and as many epochs as are ever used
    assert not torch.equal(laid[0][0], laid[1][0])
    images, labels = pool.pixels(torch.arange(len(pool.labels))), pool.labels
    losses = [float(F.cross_entropy(classify(network, w, images), labels)) for w in laid[0]]
    assert losses[-1] < 0.5 * losses[0]


def test_the_gap_falls(committee: list[Classifier], pool: Pool) -> None:
    """Breaks when steps lead nowhere: on every leg of the experts, students come nearer."""
    engine = replace(
        ENGINE, width=8, steps=60, expert_rate=0.05, student_rate=0.05, student_steps=8
    )
    recipe = replace(METHODS["mtt"], engine=replace(engine, learning_rate=30.0))
    work = block(committee, pool, 1)
    laid = [engine.lay(index, work) for index in range(engine.experts)]
    result = recover(recipe, committee, pool, range(CLASSES), Settings(1), laid=laid)
    first, last = result.steps[:10], result.steps[-10:]
    assert sum(row["loss"] for row in last) < 0.95 * sum(row["loss"] for row in first)
    assert {row["student_rate"] for row in result.steps} != {0.05}
