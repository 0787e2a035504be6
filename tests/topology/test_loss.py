import math

import pytest
import torch
from topology_oracles import circle, cloud, clouds, length_matrix

from reta.topology import (
    contraction_gap,
    diameters,
    mutual_knn_graph,
    persistence_image,
    persistence_images,
    topology_loss,
    topology_losses,
)
from reta.topology.persistence import flag_pairs, live_diagrams

GRAPHS = ["union", "separate"]


def induced_images(points, edges, max_length):
    """Images of the complex on given edges, one degree at a time."""
    lengths = (points[edges[:, 0]] - points[edges[:, 1]]).norm(dim=1)
    pairs = flag_pairs(length_matrix(len(points), edges, lengths))
    cut = torch.tensor([max_length], dtype=torch.float64)
    diagrams = live_diagrams(points[None], [pairs], cut, "clip")
    return torch.stack([persistence_image(diagram, max_length) for diagram in diagrams])


def test_union_is_one_graph_seen_by_two_sets():
    """Breaks if edges between the sets enter a complex, or neighbours are sought in one set."""
    synthetic, real = 0.8 * cloud(14, dim=2, seed=1), cloud(20, dim=2)
    max_length = 0.6 * diameters(real[None]).item()
    edges = mutual_knn_graph(torch.cat((synthetic, real)), 6, max_length)
    of_synthetic = edges[(edges < 14).all(dim=1)]
    of_real = edges[(edges >= 14).all(dim=1)] - 14
    assert len(of_synthetic) + len(of_real) < len(edges)
    synthetic_images = induced_images(synthetic, of_synthetic, max_length)
    real_images = induced_images(real, of_real, max_length)
    components, loops = (synthetic_images - real_images).square().sum(dim=(1, 2))
    for loop_weight in (0.0, 1.0, 3.0):
        loss = topology_loss(synthetic, real, 6, max_length, loop_weight=loop_weight)
        assert loss.item() == pytest.approx((components + loop_weight * loops).item(), rel=1e-12)


def test_separate_is_the_distance_of_two_images():
    """Breaks if one set changes the complex or the scale of the other, beyond the real diameter."""
    synthetic, real = 0.8 * cloud(14, seed=1), cloud(20)
    max_length = diameters(real[None])
    images = (persistence_images(p[None], k=6, max_lengths=max_length) for p in (synthetic, real))
    expected = torch.sub(*images).square().sum()
    loss = topology_loss(synthetic, real, 6, graph="separate")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("count", [2, 8, 30])
def test_identical_sets_have_no_loss(graph, count):
    """Breaks if the two sets are not treated alike."""
    points = cloud(count)
    assert topology_loss(points, points.clone(), graph=graph).item() == 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_contraction_is_penalised(graph):
    """Breaks if the loss is blind to what it is there for."""
    real, order = circle(12), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    losses = [topology_loss(s * real[order], real, graph=graph).item() for s in (0.9, 0.7, 0.4)]
    assert 0 < losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("essential", ["clip", "drop"])
@pytest.mark.parametrize("cut", [None, 1.5])
def test_gradient_of_both_sets(graph, essential, cut):
    """Breaks if any length is detached. All points are neighbours, so the edge set is fixed."""
    synthetic = circle(6) + 0.05 * cloud(6, dim=2, seed=1)  # cut at 1.5: the loop is essential
    real = 1.1 * circle(6) + 0.05 * cloud(6, dim=2, seed=2)
    max_length = cut or diameters(real[None]).item()  # the default is detached by design

    def loss(*sets):
        return topology_loss(
            *sets, 15, max_length, 8, bandwidth=0.1, essential=essential, graph=graph
        )

    synthetic, real = synthetic.requires_grad_(), real.requires_grad_()
    assert torch.autograd.gradcheck(loss, (synthetic, real))
    assert all(g.any() for g in torch.autograd.grad(loss(synthetic, real), (synthetic, real)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_duplicate_points_have_a_finite_gradient(graph):
    """Breaks if the square root is differentiated at a zero distance."""
    synthetic = cloud(6).repeat(2, 1).requires_grad_()
    topology_loss(synthetic, cloud(12, seed=1), graph=graph).backward()
    assert torch.isfinite(synthetic.grad).all()
    assert synthetic.grad.any()


@pytest.mark.parametrize("graph", GRAPHS)
def test_descent_spreads_a_contracted_class(graph):
    """Breaks if the gradient points the wrong way."""
    real = cloud(10, dim=4)
    synthetic = (0.3 * cloud(10, dim=4, seed=1)).requires_grad_()
    optimizer = torch.optim.Adam([synthetic], lr=0.1)
    before = contraction_gap(real, synthetic)
    for _ in range(60):
        optimizer.zero_grad()
        topology_loss(synthetic, real, graph=graph).backward()
        optimizer.step()
    assert contraction_gap(real, synthetic) < before / 3


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("max_lengths", [None, 1.5, torch.tensor([1.0, 1.5, 2.0, 3.0])])
def test_many_classes_equal_one_at_a_time(graph, workers, max_lengths):
    """Breaks if classes are mixed up, in values or gradients, or depend on the threads."""
    synthetic, real = clouds(4, 9, seed=1).requires_grad_(), clouds(4, 12)
    losses = topology_losses(
        synthetic, real, k=5, max_lengths=max_lengths, graph=graph, workers=workers
    )
    own_lengths = [None] * 4 if max_lengths is None else torch.as_tensor(max_lengths).expand(4)
    singles = torch.stack(
        [
            topology_loss(s, r, 5, None if length is None else float(length), graph=graph)
            for s, r, length in zip(synthetic, real, own_lengths, strict=True)
        ]
    )
    weights = torch.arange(1.0, 5)
    (gradient,) = torch.autograd.grad(weights @ losses.float(), synthetic)
    (expected,) = torch.autograd.grad(weights @ singles.float(), synthetic)
    torch.testing.assert_close(losses, singles, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_real_images_may_be_kept():
    """Breaks if the images computed once are not those the loss would compute."""
    synthetic, real = clouds(3, 9, seed=1), clouds(3, 12)
    settings = {"k": 5, "max_lengths": diameters(real), "size": 16, "essential": "drop"}
    images = persistence_images(real, **settings)
    kept = topology_losses(synthetic, real, graph="separate", real_images=images, **settings)
    assert torch.equal(kept, topology_losses(synthetic, real, graph="separate", **settings))


@pytest.mark.parametrize("graph", GRAPHS)
def test_single_precision(graph):
    """Breaks if the caller's precision is not returned, or is used inside."""
    synthetic, real = cloud(12, seed=1).float().requires_grad_(), cloud(12).float()
    loss = topology_loss(synthetic, real, graph=graph)
    exact = topology_loss(synthetic.double(), real.double(), graph=graph)
    loss.backward()
    assert loss.dtype == synthetic.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_points_have_no_topology(graph, count):
    """Breaks if one image per class meets an error, a loss, or a loss without a graph."""
    synthetic = clouds(3, count).float().requires_grad_()
    losses = topology_losses(synthetic, clouds(3, 5), graph=graph)
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(3))
    assert torch.equal(synthetic.grad, torch.zeros_like(synthetic))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "real", [cloud(0), cloud(1), cloud(2), torch.ones(5, 3), torch.eye(3)], ids=len
)
def test_degenerate_real_sets(graph, real):
    """Breaks if a diameter of zero divides, or equal distances confuse the pairing."""
    synthetic = torch.eye(3).requires_grad_()
    loss = topology_loss(synthetic, real, graph=graph)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(synthetic.grad).all()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("bad", [0, 1])
def test_points_that_are_not_finite_are_refused(graph, bad):
    """Breaks if a diverged teacher or image goes unnoticed."""
    sets = [cloud(5), cloud(5, seed=1)]
    sets[bad] = sets[bad] * math.nan
    with pytest.raises(ValueError, match="finite"):
        topology_loss(*sets, graph=graph)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"graph": "both"}, "union.*separate"),
        ({"essential": "inf"}, "clip.*drop"),
        ({"essential": "keep"}, "clip.*drop"),
        ({"real_images": torch.zeros(1, 2, 32, 32)}, 'graph="separate"'),
        ({"k": 0}, "k must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    """Breaks if an error does not name the argument and what it may be."""
    with pytest.raises(ValueError, match=message):
        topology_losses(clouds(1, 5), clouds(1, 5, seed=1), **arguments)
