import math

import numpy as np
import pytest
import torch
from gudhi.representations import PersistenceImage
from topology_oracles import circle, cloud, clouds

from reta.topology import persistence_diagrams, persistence_image, persistence_images


def diagram(count=12, max_length=3.0, seed=0):
    """Random bars below a length."""
    numbers = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)).double()
    return max_length * numbers.sort(dim=1).values


@pytest.mark.parametrize("size", [5, 32])
@pytest.mark.parametrize("bandwidth", [0.05, 0.2])
@pytest.mark.parametrize("weight", ["persistence", "one"])
def test_agrees_with_gudhi_up_to_its_prefactor(size, bandwidth, weight):
    """Breaks on nodes for centres, swapped axes, a prefactor, variance for bandwidth."""
    centres = [0.5 / size, 1 - 0.5 / size]
    reference = PersistenceImage(
        bandwidth=bandwidth,
        weight=(lambda point: point[1]) if weight == "persistence" else (lambda _: 1),
        resolution=[size, size],
        im_range=[*centres, *centres],
    )
    expected = reference(diagram().numpy() / 3.0) * 2 * math.pi * bandwidth**2
    image = persistence_image(diagram(), 3.0, size, bandwidth, weight)
    np.testing.assert_allclose(image.flatten().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_equals_the_formula():
    """Breaks if the separable product is not the sum over bars of Gaussians in the plane."""
    size, bandwidth, max_length = 4, 0.3, 2.5
    image = persistence_image(diagram(3), max_length, size, bandwidth)
    for row in range(size):
        for column in range(size):
            centre = ((column + 0.5) / size, (row + 0.5) / size)
            expected = 0.0
            for birth, death in diagram(3).tolist():
                bar = (birth / max_length, (death - birth) / max_length)
                squared = math.dist(centre, bar) ** 2
                expected += bar[1] * math.exp(-squared / (2 * bandwidth**2))
            assert image[row, column].item() == pytest.approx(expected, rel=1e-12)


def test_rows_are_persistence():
    """Breaks if the image is transposed: a late, short bar lies at the end of the first row."""
    image = persistence_image(torch.tensor([[0.95, 0.96]]), 1.0, size=20)
    assert divmod(image.argmax().item(), 20)[0] == 0
    assert divmod(image.argmax().item(), 20)[1] == 18


def test_unit_of_length_does_not_matter():
    """Breaks if only one axis, or not the weight, is divided by the length."""
    image = persistence_image(diagram(), 3.0)
    assert torch.equal(persistence_image(8 * diagram(), 24.0), image)


@pytest.mark.parametrize("weight", ["persistence", "one"])
def test_bars_on_the_diagonal_weigh_nothing(weight):
    """Breaks if padding, or a bar that never lived, shows up in an image."""
    padded = torch.cat((diagram(), torch.tensor([[0.0, 0.0], [1.2, 1.2]])))
    image, expected = (persistence_image(d, 3.0, weight=weight) for d in (padded, diagram()))
    torch.testing.assert_close(image, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("max_length", [0.0, 1.0])
def test_empty_diagram_gives_zeros(max_length):
    """Breaks on a division by the zero diameter of a collapsed class."""
    image = persistence_image(torch.empty(0, 2), max_length, size=7)
    assert torch.equal(image, torch.zeros(7, 7).double())


@pytest.mark.parametrize("weight", ["persistence", "one"])
def test_gradient(weight):
    """Breaks if the weight or either axis is cut from the graph."""
    bars = diagram(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: persistence_image(d, 3.0, 6, 0.2, weight), bars)


@pytest.mark.parametrize("essential", ["clip", "drop"])
@pytest.mark.parametrize("max_lengths", [None, 1.5, torch.tensor([1.0, 1.5, 2.0])])
def test_stack_of_clouds_equals_one_at_a_time(essential, max_lengths):
    """Breaks if bars of one cloud end up in the image, or the scale, of another."""
    points = clouds(3, 12)
    points[1] = torch.cat((circle(12), torch.zeros(12, 1)), dim=1)  # few bars, much padding
    images = persistence_images(points, k=4, max_lengths=max_lengths, essential=essential)
    assert images.shape == (3, 2, 32, 32)
    for index, own in enumerate(points):
        if max_lengths is None:
            max_length = torch.pdist(own).max().item()
        else:
            max_length = torch.as_tensor(max_lengths).expand(3)[index].item()
        for degree, bars in enumerate(persistence_diagrams(own, 4, max_length, essential)):
            expected = persistence_image(bars, max_length)
            torch.testing.assert_close(images[index, degree], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"diagram": torch.tensor([[0.0, math.inf]])}, "clip.*drop"),
        ({"diagram": torch.tensor([[0.0, math.nan]])}, "clip.*drop"),
        ({"max_length": 0.0}, "max_length must be positive"),
        ({"max_length": math.inf}, "max_length must be positive and finite"),
        ({"size": 0}, "size"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"weight": "linear"}, "persistence.*one"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    """Breaks if NaN comes out instead of an error that names the argument."""
    with pytest.raises(ValueError, match=message):
        persistence_image(**{"diagram": diagram(), "max_length": 3.0, **arguments})


def test_images_of_infinite_bars_are_refused():
    """Breaks if infinity is smoothed into NaN."""
    with pytest.raises(ValueError, match=r"clip.*drop"):
        persistence_images(cloud(5)[None], essential="inf")
