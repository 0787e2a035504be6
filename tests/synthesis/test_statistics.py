"""Statistics per group and channel, values and gradients."""

import pytest
import torch

from reta.synthesis.statistics import group_statistics


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_values_and_gradients_equal_var_mean(groups):
    """Breaks when a group reads its neighbour, or the variance is not the biased one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    own = group_statistics(x, groups)
    grouped = x.unflatten(0, (groups, -1))
    variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0)
    weights = torch.randn(2, groups, 4, generator=generator, dtype=torch.float64)
    gradients = []
    for pair in (own, (mean, variance)):
        loss = (pair[0] * weights[0]).sum() + (pair[1] * weights[1]).sum()
        gradients.append(torch.autograd.grad(loss, x, retain_graph=True)[0])
    torch.testing.assert_close(own[0], mean)
    torch.testing.assert_close(own[1], variance)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradcheck():
    """Breaks when the hand-written backward pass is not the derivative of the forward pass."""
    x = torch.randn(4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: group_statistics(value, 2), x)


def test_a_large_mean_does_not_cancel():
    """Breaks when the variance is computed as E[x²] − E[x]²."""
    x = 1e4 + torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    reference = x.double().var(dim=(0, 2, 3), correction=0)
    _, variance = group_statistics(x, 1)
    torch.testing.assert_close(variance[0].double(), reference, rtol=1e-3, atol=0)
