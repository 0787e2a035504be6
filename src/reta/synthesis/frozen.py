"""A frozen teacher rewritten for the one thing recovery asks of it: a gradient at the pixels.

The weights never change, so nothing is kept that only their gradients would need:

- a convolution keeps nothing, its input gradient needs the weight alone;
- BatchNorm, which is a fixed affine map here, and the ReLU after it keep what enters the norm and
  nothing else. The ReLU's mask is made again from it, and the gradient of the statistics, an affine
  map of it too, is added in the same place;
- where concatenated maps enter a norm (DenseNet), each map's statistics are taken once and serve
  every later layer it enters.

Numbers are those of the teacher itself, which `matching.BatchNormProbe` reads: the plain path,
against which this one is tested.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.autograd.function import once_differentiable

from reta.models import Classifier, preferred_layout
from reta.synthesis.statistics import group_statistics, moments, moments_map

Statistics = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Reading:
    """What one forward pass reads, shared by the layers of a rewritten network.

    Attributes:
        groups: BN groups in the pass; 0 to read no statistics.
        statistics: by the teacher's own layer, mean and variance ``(g, c)`` of what entered it.
    """

    groups: int = 0
    statistics: dict[nn.Module, Statistics] = field(default_factory=dict)


class _Convolution(torch.autograd.Function):
    """A convolution whose weight gets no gradient, so that its input need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Conv2d, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        y: torch.Tensor = layer._conv_forward(x, weight, layer.bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        layer: nn.Conv2d = ctx.layer
        weight = weight.to(gradient.dtype)  # under autocast
        # The values of the input do not matter, but its shape and layout do: they choose a kernel.
        layout = (
            torch.channels_last
            if weight.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        unread = torch.empty(
            ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout
        )
        (x_gradient, _, _) = torch.ops.aten.convolution_backward(
            gradient, unread, weight, None, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], layer.groups, [True, False, False],
        )  # fmt: skip
        return x_gradient.to(ctx.dtype), None, None


class FrozenConvolution(nn.Module):
    """A convolution of a frozen teacher."""

    def __init__(self, layer: nn.Conv2d, weight: torch.Tensor, short: torch.dtype | None) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", weight)
        # Cast once: autocast would cast a frozen weight anew in each pass.
        self.register_buffer("short", None if short is None else weight.to(short))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of x."""
        shorter = self.short is not None and torch.is_autocast_enabled(x.device.type)
        weight = self.short if shorter else self.weight
        y: torch.Tensor = _Convolution.apply(x, self.layer, weight)
        return y


_BLOCK = 2**17  # numbers that stay in a core's cache while several passes go over them


def _blocks(x: torch.Tensor) -> list[slice]:
    """Cut a batch so that the passes over each part find it in the cache; not on a GPU."""
    images = len(x) if x.device.type != "cpu" else max(1, _BLOCK // max(1, x[0].numel()))
    return [slice(begin, begin + images) for begin in range(0, len(x), images)]


class _NormActivation(torch.autograd.Function):
    """clamp(scale · x + shift) and the statistics of x; keeps x alone, and only if it is needed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
        ceiling: float | None,
        groups: int,
    ) -> Any:
        mean, variance = moments(x, groups) if groups else (x.new_empty(0), x.new_empty(0))
        y = torch.empty_like(x)
        for part in _blocks(x):
            own = torch.addcmul(shift, x[part], scale, out=y[part])
            if ceiling is not None:
                own.clamp_(0, ceiling) if ceiling < torch.inf else own.relu_()
        kept = x if groups or ceiling is not None else None
        ctx.save_for_backward(kept, scale, shift, mean)
        ctx.ceiling, ctx.groups = ceiling, groups
        if not groups:
            ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        gradient: torch.Tensor,
        mean_gradient: torch.Tensor,
        variance_gradient: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        x, scale, shift, mean = ctx.saved_tensors
        if x is None:
            return gradient * scale, None, None, None, None
        result = torch.empty_like(x)
        if ctx.groups:
            offset, slope = moments_map(x, mean, mean_gradient, variance_gradient)
        for part in _blocks(x):
            own = result[part]
            if ctx.ceiling is None:
                torch.mul(gradient[part], scale, out=own)
            else:
                torch.addcmul(shift, x[part], scale, out=own)  # what entered the ReLU
                _mask(gradient[part], own, ctx.ceiling).mul_(scale)
            if ctx.groups:
                each = part if len(slope) > 1 else slice(None)
                own.addcmul_(x[part], slope[each]).add_(offset[each])
        return result, None, None, None, None


def _mask(gradient: torch.Tensor, before: torch.Tensor, ceiling: float) -> torch.Tensor:
    """Write the gradient before a ReLU over what entered it."""
    if ceiling < torch.inf:
        torch.ops.aten.hardtanh_backward.grad_input(gradient, before, 0, ceiling, grad_input=before)
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, before, 0, grad_input=before)
    return before


class FrozenNorm(nn.Module):
    """BatchNorm of a frozen teacher, the ReLU after it if there is one, and what enters it."""

    def __init__(self, layer: nn.BatchNorm2d, ceiling: float | None, reading: Reading) -> None:
        super().__init__()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        scale = (layer.running_var.double() + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight.double()
        shift = -layer.running_mean.double() * scale
        if layer.bias is not None:
            shift = shift + layer.bias.double()
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, value.to(layer.running_var)[:, None, None])
        # In a list, or the teacher's layer would be registered as a part of this one.
        self.source, self.ceiling, self.reading = [layer], ceiling, reading

    def forward(self, x: torch.Tensor, *parts: Statistics) -> torch.Tensor:
        """Return the norm of x; ``parts`` are the statistics of what x was concatenated from."""
        scale, shift = self.scale.to(x.dtype), self.shift.to(x.dtype)
        groups = self.reading.groups
        y, mean, variance = _NormActivation.apply(
            x, scale, shift, self.ceiling, 0 if parts else groups
        )
        if groups and parts:
            mean, variance = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        if groups:
            self.reading.statistics[self.source[0]] = (mean, variance)
        result: torch.Tensor = y
        return result


class PartStatistics(nn.Module):
    """Statistics of a feature map that enters several norms as a part of what is concatenated."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def forward(self, x: torch.Tensor) -> Statistics:
        """Return mean and variance ``(g, c)``; two empty tensors where none are read."""
        if not self.reading.groups:
            return x.new_empty(0), x.new_empty(0)
        return group_statistics(x, self.reading.groups)


def frozen(
    teacher: Classifier, short: torch.dtype | None = None
) -> tuple[Classifier, Reading] | None:
    """Return a teacher rewritten for pixel gradients, and what its passes read.

    The teacher's own modules are left as they are; heads and weights are shared.

    Args:
        teacher: frozen.
        short: number format under autocast, if it is to run there too.

    Returns:
        None for a network whose course depends on what it sees, which cannot be rewritten.
    """
    try:
        network = fx.symbolic_trace(teacher.trunk)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError, AttributeError):
        return None
    reading = Reading()
    network.add_submodule("part_statistics", PartStatistics(reading))
    parts: dict[fx.Node, fx.Node] = {}
    layout = preferred_layout(teacher)
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        layer = teacher.trunk.get_submodule(str(node.target))
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and _explicit(layer):
            weight = layer.weight.detach().contiguous(memory_format=layout)
            _exchange(network, node, FrozenConvolution(layer, weight, short))
        elif type(layer) is nn.BatchNorm2d:
            _exchange(network, node, FrozenNorm(layer, _absorb_relu(teacher, node), reading))
            node.args = (*node.args, *_statistics_of_parts(network, node.args[0], parts))
    network.graph.lint()
    network.recompile()
    made = copy.copy(teacher)
    made._modules = {**teacher._modules, "trunk": network}
    return made, reading


def _explicit(layer: nn.Conv2d) -> bool:
    return not isinstance(layer.padding, str)


def _exchange(network: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let a node call another module. Under a name of its own: a layer may be called twice."""
    name = f"frozen_{node.name}"
    network.add_submodule(name, module)
    node.target = name


def _absorb_relu(teacher: Classifier, node: fx.Node) -> float | None:
    """Remove the ReLU that alone follows a node, and return where it ends: 6, or infinity."""
    if len(node.users) != 1:
        return None
    (after,) = node.users
    ceiling: float | None = None
    if after.op == "call_module":
        layer = teacher.trunk.get_submodule(str(after.target))
        ceiling = {nn.ReLU: torch.inf, nn.ReLU6: 6.0}.get(type(layer))
    elif after.op == "call_function" and after.target in (F.relu, torch.relu):
        ceiling = torch.inf
    if ceiling is not None:
        after.replace_all_uses_with(node)
        node.graph.erase_node(after)
    return ceiling


def _statistics_of_parts(
    network: fx.GraphModule, entering: Any, known: dict[fx.Node, fx.Node]
) -> list[fx.Node]:
    """Return the nodes that read the parts of a concatenation along the channels, if it is one."""
    if entering.op != "call_function" or entering.target not in (torch.cat, torch.concat):
        return []
    tensors, *rest = entering.args
    axis = rest[0] if rest else entering.kwargs.get("dim", 0)
    if axis != 1 or len(entering.kwargs) > operator.index(not rest):
        return []
    for part in tensors:
        if part not in known:
            with network.graph.inserting_after(part):
                known[part] = network.graph.call_module("part_statistics", (part,))
    return [known[part] for part in tensors]
