"""The topology term inside the loop: where its gradient goes, and how often."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.methods import METHODS
from reta.models import Classifier
from reta.progress import warn_once
from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.pool import Pool, build_pool
from reta.synthesis.schedule import Schedule
from reta.topology import persistence_diagrams, persistence_image, topology_loss

LABELS = [3, 0, 2]


def recovery(
    topology: TopologyAlignment | None,
    committee: list[Classifier],
    pool: Pool,
    ipc: int = 6,
    images_per_pass: int = 100,
    schedule: Schedule | None = None,
) -> Recovery:
    recipe = replace(
        METHODS["reta-pta"], topology=topology, schedule=schedule or Schedule(4, connections=1)
    )
    settings = Settings(ipc, seed=5, images_per_pass=images_per_pass)
    made = Recovery(recipe, committee, pool, LABELS, settings)
    # Away from the pool, where real and synthetic points would coincide.
    noise = torch.rand(made.canvas.pixels.shape, generator=torch.Generator().manual_seed(0))
    made.canvas.pixels = (
        0.7 * made.canvas.pixels + 0.3 * noise.to(made.canvas.pixels) / made.canvas.unit
    )
    return made


def in_one_pass(made: Recovery, pool: Pool, *, scale: float, **options: object) -> torch.Tensor:
    """Return ∂/∂pixels of λ Σ_c L_topo by one autograd call through teacher and diagrams."""
    topology = made.recipe.topology
    ipc = made.settings.ipc
    count = min(ipc, topology.points)
    (real,) = topology.real_features(pool, LABELS, count, made.settings.seed)
    real = real.to(made.canvas.pixels)
    leaf = made.canvas.pixels.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=leaf.dtype)
    for column in range(len(LABELS)):
        features = made.teachers[0].features(leaf[:count, column] * made.canvas.unit)
        own, target = F.normalize(features, dim=1), F.normalize(real[column], dim=1)
        total = total + topology_loss(own, target.to(own), **options) * scale / count**2
    (gradient,) = torch.autograd.grad(topology.weight * total, leaf)
    return gradient


@pytest.mark.parametrize("points", [100, 4])
@pytest.mark.parametrize("images_per_pass", [100, 6, 1])
def test_two_passes_equal_one(
    points: int, images_per_pass: int, double_committee: list[Classifier], double_pool: Pool
) -> None:
    """A gradient that goes to the wrong image, is cut at a pack, or loses the normalisation."""
    topology = TopologyAlignment(points=points, neighbours=4)
    made = recovery(topology, double_committee, double_pool, images_per_pass=images_per_pass)
    pull, row = made.aligner.gradient(made.used[-1])
    expected = in_one_pass(made, double_pool, scale=1.0, k=4)
    assert expected.abs().max() > 0
    torch.testing.assert_close(pull, expected, rtol=1e-8, atol=1e-12 * expected.abs().max().item())
    assert (pull[points:] == 0).all()
    assert row["topology"] > 0


def test_options_reach_the_loss(double_committee: list[Classifier], double_pool: Pool) -> None:
    """An option of the recipe that is accepted and ignored."""
    topology = TopologyAlignment(
        weight=2.0, neighbours=3, loop_weight=3.0, graph="separate", essential="drop",
        image_size=8, bandwidth=0.2,
    )  # fmt: skip
    made = recovery(topology, double_committee, double_pool)
    expected = in_one_pass(
        made, double_pool, scale=1.0, k=3, loop_weight=3.0, graph="separate", essential="drop",
        size=8, bandwidth=0.2,
    )  # fmt: skip
    assert expected.abs().max() > 0
    torch.testing.assert_close(
        made.aligner.gradient(made.used[-1])[0], expected, rtol=1e-8, atol=1e-12
    )


def test_the_longest_edge_can_be_said(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """ε_max fixed in the recipe, but the diameter used, on one side or on both."""
    for graph in ("union", "separate"):
        made = recovery(
            TopologyAlignment(max_length=0.05, neighbours=4, graph=graph),
            double_committee,
            double_pool,
        )
        expected = in_one_pass(made, double_pool, scale=1.0, k=4, max_length=0.05, graph=graph)
        assert expected.abs().max() > 0
        torch.testing.assert_close(
            made.aligner.gradient(made.used[-1])[0], expected, rtol=1e-8, atol=1e-9
        )


def test_points_can_count_alike() -> None:
    """w = 1 accepted and ignored: a short bar must count as much as a long one."""
    generator = torch.Generator().manual_seed(0)
    blob, other = torch.randn(2, 1, 8, 3, generator=generator, dtype=torch.float64)
    images = {}
    for side, points in (("own", blob), ("other", other)):
        longest = float(torch.pdist(other[0]).max())
        diagrams = persistence_diagrams(points[0], 4, longest)
        images[side] = [persistence_image(d, longest, weight="one") for d in diagrams]
    expected = sum(
        (a - b).square().sum() for a, b in zip(images["own"], images["other"], strict=True)
    )
    topology = TopologyAlignment(
        point_weight="one", graph="separate", normalize=False, neighbours=4, image_scale="sum"
    )
    losses, _ = topology.gradient(blob, topology.target(other[None]))
    assert losses.item() == pytest.approx(0.5 * expected.item(), rel=1e-9)


@pytest.mark.parametrize("loop_weight", [0.0, 1.0, 3.0])
def test_loops_count_with_their_weight(loop_weight: float) -> None:
    """A real ring and a synthetic blob differ by a loop: γ must reach that degree alone."""
    angles = torch.arange(12, dtype=torch.float64) * (2 * torch.pi / 12)
    ring = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    generator = torch.Generator().manual_seed(0)
    blob = torch.randn(1, 12, 2, generator=generator, dtype=torch.float64)
    options = {"graph": "separate", "normalize": False, "neighbours": 3}
    losses, _ = TopologyAlignment(loop_weight=loop_weight, **options).gradient(
        blob, TopologyAlignment(loop_weight=loop_weight, **options).target(ring[None])
    )
    components = 0.5 * topology_loss(blob[0], ring[0], 3, loop_weight=0.0, graph="separate") / 144
    both = 0.5 * topology_loss(blob[0], ring[0], 3, loop_weight=1.0, graph="separate") / 144
    assert both > 1.001 * components
    expected = components + loop_weight * (both - components)
    assert losses.item() == pytest.approx(expected.item(), rel=1e-9)


def test_literal_sums_are_n_squared_times_the_means(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """‖(I − J) / n‖² = ‖I − J‖² / n²: a division by n would be wrong by the class size."""
    made = {
        scale: recovery(TopologyAlignment(image_scale=scale), double_committee, double_pool)
        for scale in ("mean", "sum")
    }
    (mean, mean_row), (total, sum_row) = (
        made[scale].aligner.gradient(None) for scale in ("mean", "sum")
    )
    torch.testing.assert_close(total, 36 * mean, rtol=1e-9, atol=1e-12)
    assert sum_row["topology"].item() == pytest.approx(36 * mean_row["topology"].item())


def test_raw_features_when_not_normalised(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Features scaled to unit length although asked not to be (lengths are then ε_max-relative)."""
    topology = TopologyAlignment(normalize=False)
    made = recovery(topology, double_committee, double_pool)
    features = made.canvas.features()
    (real,) = topology.real_features(double_pool, LABELS, 6, 5)
    losses, _ = topology.gradient(features, topology.target(real[None]))
    for column in range(len(LABELS)):
        expected = 0.5 * topology_loss(features[column], real[column]) / 36
        assert losses[column].item() == pytest.approx(expected.item(), rel=1e-9)


def test_one_image_has_no_topology_and_is_told_once(
    committee: list[Classifier], pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """ipc = 1: the term is 0 and no gradient, with one warning in all."""
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "reta"):
        made, again = (recovery(TopologyAlignment(), committee, pool, ipc=1) for _ in range(2))
    without = recovery(None, committee, pool, ipc=1).run()
    assert made.run().images.equal(without.images)
    assert again.run().images.equal(without.images)
    assert len([r for r in caplog.records if "topology" in r.getMessage()]) == 1


def test_a_constant_real_side_is_computed_once(
    monkeypatch: pytest.MonkeyPatch, committee: list[Classifier], pool: Pool
) -> None:
    """The real side refreshed at each step for nothing, or kept although the anchors changed."""
    for options, times in (({}, 1), ({"real_points": "anchors"}, 3)):
        topology = TopologyAlignment(graph="separate", **options)
        made, calls = recovery(topology, committee, pool, ipc=3), []
        target = TopologyAlignment.target
        with monkeypatch.context() as patch:
            patch.setattr(
                TopologyAlignment,
                "target",
                lambda *given, calls=calls, target=target: calls.append(1) or target(*given),
            )
            now = made.used[-1]
            members = [pool.members(label) for label in LABELS]
            others = torch.stack([own[~torch.isin(own, now)][:3] for own in members], dim=1)
            losses = [
                made.aligner.gradient(anchors)[1]["topology"] for anchors in (now, now, others)
            ]
        assert len(calls) == times
        assert losses[0] == losses[1]
        assert bool(losses[1] == losses[2]) is (times == 1)


def test_due_every_t_steps_and_at_the_end_of_a_block() -> None:
    """T steps counted from the wrong end, or a block that ends unaligned."""
    topology = TopologyAlignment(interval=20)
    assert [step for step in range(50) if topology.due(step, 50)] == [0, 20, 40, 49]
    assert [step for step in range(5) if topology.due(step, 5)] == [0, 4]


def test_defaults_are_those_of_the_spec() -> None:
    """λ_topo = 0.5, k = 15, γ = 1, 32 × 32, σ = 0.05, one graph, ε_max for what never dies."""
    topology = TopologyAlignment()
    assert (topology.weight, topology.neighbours, topology.loop_weight) == (0.5, 15, 1.0)
    assert (topology.image_size, topology.bandwidth) == (32, 0.05)
    assert (topology.graph, topology.essential, topology.normalize) == ("union", "clip", True)
    assert topology.image_scale == "mean"


def test_real_points_are_fixed_and_of_the_class(pool: Pool) -> None:
    """Another draw at each refresh would let the target wander; a class in the wrong row."""
    topology = TopologyAlignment()
    (one,) = topology.real_features(pool, LABELS, 5, 0)
    assert one.shape == (3, 5, pool.features.shape[1])
    assert torch.equal(one, topology.real_features(pool, LABELS, 5, 0)[0])
    assert not torch.equal(one, topology.real_features(pool, LABELS, 5, 1)[0])
    assert torch.equal(one[1:2], topology.real_features(pool, [0], 5, 0)[0])  # in any block
    for row, label in zip(one, LABELS, strict=True):
        own = pool.features[pool.labels == label]
        where = [(own == point).all(1).nonzero().flatten().tolist() for point in row]
        assert all(len(found) == 1 for found in where)
        assert len({found[0] for found in where}) == 5


def test_anchors_come_first_where_asked_for(pool: Pool) -> None:
    """Anchors left out, taken twice, or pushed out of the first n_c places."""
    topology = TopologyAlignment(real_points="anchors")
    members = pool.members(0)
    anchors = torch.stack([members[[4, 4, 1]], pool.members(2)[[0, 3, 3]]], dim=1)
    (points,) = topology.real_features(pool, [0, 2], 5, 0, anchors)
    for column in range(2):
        first = pool.features[anchors[:, column].unique()]
        assert torch.equal(points[column, :2], first)
        assert len(points[column].unique(dim=0)) == 5
    without = topology.real_features(pool, [0, 2], 5, 0)
    sampled = TopologyAlignment().real_features(pool, [0, 2], 5, 0, anchors)
    assert torch.equal(sampled, without)


def test_several_draws_give_the_mean_persistence_image(pool: Pool) -> None:
    """The sum, one draw repeated, or each draw on a length of its own."""
    topology = TopologyAlignment(graph="separate", draws=3, image_scale="sum", weight=1.0)
    real = topology.real_features(pool, LABELS, 4, 0)
    assert len({tuple(draw[0].flatten().tolist()) for draw in real}) == 3
    target = topology.target(real)
    assert target.images is not None
    lengths = torch.stack([topology.target(draw[None]).lengths for draw in real]).mean(0)
    assert torch.allclose(target.lengths, lengths)
    for column in range(len(LABELS)):
        alone = replace(topology, draws=1, max_length=float(lengths[column]))
        images = torch.stack([alone.target(draw[None]).images[column] for draw in real])
        assert torch.allclose(target.images[column], images.mean(0), atol=1e-6)


def test_a_class_with_fewer_real_images_than_points(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Nine real images and twelve synthetic ones: repeated points must not give NaN."""
    made = recovery(TopologyAlignment(), double_committee, double_pool, ipc=12)
    pull, row = made.aligner.gradient(made.used[-1])
    assert torch.isfinite(pull).all()
    assert torch.isfinite(row["topology"])


def gradients(
    monkeypatch: pytest.MonkeyPatch, topology: TopologyAlignment | None, *world: object
) -> list[torch.Tensor]:
    """Return the gradient handed to Adam at each step of a run that does not move the pixels."""
    seen: list[torch.Tensor] = []

    class Watched(torch.optim.Adam):
        def step(self) -> None:  # type: ignore[override]
            seen.append(self.param_groups[0]["params"][0].grad.clone())
            super().step()

    schedule = Schedule(steps=8, connections=0, learning_rate=0.0)
    made = recovery(topology or TopologyAlignment(), *world, schedule=schedule)
    if topology is None:
        made.aligner = None
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Watched)
        made.run()
    return seen


def test_spreading_adds_up_to_the_same_pull(
    monkeypatch: pytest.MonkeyPatch, double_committee: list[Classifier], double_pool: Pool
) -> None:
    """All at once every T steps, or a T-th at each of T steps: the same sum over an interval."""
    world = (double_committee, double_pool)
    main = gradients(monkeypatch, None, *world)
    once = gradients(monkeypatch, TopologyAlignment(interval=4), *world)
    spread = gradients(monkeypatch, TopologyAlignment(interval=4, spread=True), *world)
    assert len(main) == len(once) == len(spread) == 8
    pull = once[0] - main[0]
    assert pull.abs().max() > 0
    for step in range(8):
        due = step in (0, 4, 7)
        torch.testing.assert_close(once[step] - main[step], pull * due, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(spread[step] - main[step], pull / 4, rtol=1e-6, atol=1e-12)


def test_draws_need_a_graph_of_their_own() -> None:
    """A mean over samples of an image that depends on the synthetic points of one of them."""
    with pytest.raises(UsageError, match="separate"):
        TopologyAlignment(draws=2)
    with pytest.raises(UsageError, match="sample"):
        TopologyAlignment(draws=2, graph="separate", real_points="anchors")


@pytest.mark.parametrize("name", ["interval", "neighbours", "points", "image_size", "bandwidth"])
def test_impossible_settings_are_refused(name: str) -> None:
    """Found at once, not as a division by zero after the first step."""
    with pytest.raises(UsageError, match=name):
        TopologyAlignment(**{name: 0})


def test_the_weight_can_say_how_long_the_gradient_is(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """A share of the wrong gradient, or one that depends on the scale of the loss."""
    for scale in ("mean", "sum"):
        topology = TopologyAlignment(
            weight=0.3, weight_of="gradient", neighbours=4, image_scale=scale, interval=2
        )
        made = recovery(topology, double_committee, double_pool, schedule=Schedule(8, 1))
        ratios = [row["gradient_ratio"] for row in made.run().steps if "gradient_ratio" in row]
        ratios = [ratio for ratio in ratios if ratio]  # a gradient of zero has no direction
        assert len(ratios) >= 4
        assert ratios == pytest.approx([0.3] * len(ratios), rel=1e-6)


def test_the_teacher_whose_turn_it_is_can_give_the_features(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Real features of one teacher against synthetic ones of another."""
    topology = TopologyAlignment(teachers="turn", neighbours=4)
    made = recovery(topology, double_committee, double_pool)
    pull, _ = made.aligner.gradient(made.used[-1], 1)
    swapped = double_committee[::-1]
    other = recovery(topology, swapped, build_pool(double_pool.images, swapped[0]))
    other.canvas.pixels = made.canvas.pixels
    expected, _ = other.aligner.gradient(other.used[-1])
    assert expected.abs().max() > 0
    torch.testing.assert_close(pull, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert not torch.allclose(made.aligner.gradient(made.used[-1])[0], pull)
