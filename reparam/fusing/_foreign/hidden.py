"""Modules whose forward cannot be read: find the kernel by running it, and check it on other values."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ...algebra._affine import the_input
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp
from ...branches import Branch
from ...errors import ReparamError
from .exact import exact, numbers, without_hooks
from .reading import Forward, Reader
from .trace import is_any_norm, is_torch_layer

_EXACT = 1e-10
_MOST = 2**26
"""The most values in the input of impulses; modules with more channels or taps are not tried."""


@dataclass(frozen=True)
class Difference:
    """The difference between a forward and a kernel on random values."""

    error: float
    largest: float
    shape: tuple[int, ...]


def differs(module: nn.Module, value: LinearOp) -> Difference | None:
    """Compare a forward with a kernel; None if the forward does not run on made-up values."""
    if value.kernel.weight.is_meta:
        return None
    x = numbers(_shape_for(value), value.kernel.weight)
    try:
        wanted = without_hooks(exact(module)).forward(x)
    except Exception:  # a foreign forward may raise anything; it may want another shape, or more than one input
        return None
    conv = None if value.flat else value.spec().build_conv(*value.kernel)
    y = F.linear(x, value.kernel.weight.squeeze(-1), value.kernel.bias) if conv is None else conv(x)
    error = float((y - wanted).abs().max()) if y.shape == getattr(wanted, "shape", None) else float("inf")
    largest = float(wanted.abs().max()) if error < float("inf") else float("nan")
    return Difference(error, largest, tuple(x.shape))


def _shape_for(value: LinearOp) -> tuple[int, ...]:
    """The shape of an input with a few outputs in the interior and at each border."""
    sizes = (d * (k - 1) + 1 + 3 * s for k, s, d in zip(value.kernel.size, value.stride, value.dilation))
    return (3, value.inputs, *(() if value.flat else sizes))


@torch.no_grad()
def hidden_value(module: nn.Module, reader: Reader) -> LinearOp | None:
    """The linear map of a module with several convolutions and no activations, or None if it cannot be found.

    Some modules sum branches in training mode only and keep the result for eval mode. Others write padding into their
    values themselves. Any result is checked against the module in eval mode.
    """
    if not _may_be_linear(module):
        return None
    for find in (_as_it_trains, _by_impulses):
        try:
            value = find(module, reader)
            found = None if value is None else differs(module, value)
        except (ReparamError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            continue
        if value is not None and found is not None and found.error <= _EXACT * found.largest and _pays(module, value):
            return value
    return None


def _may_be_linear(module: nn.Module) -> bool:
    if any(isinstance(part, Branch) for part in module.modules()):
        return False
    layers = [part for part in module.modules() if is_torch_layer(part) or is_any_norm(part)]
    linear = all(isinstance(part, (_ConvNd, nn.Identity)) or is_any_norm(part) for part in layers)
    convs = [part for part in layers if isinstance(part, _ConvNd)]
    return linear and len(convs) > 1 and not any(isinstance(part, _ConvTransposeNd) for part in convs)


def _pays(module: nn.Module, value: LinearOp) -> bool:
    """Whether it costs no more than all convolutions of the module together at the input's size."""
    convs = [part.weight.numel() for part in module.modules() if isinstance(part, _ConvNd)]
    return value.kernel.weight.numel() <= sum(convs)


def _as_it_trains(module: nn.Module, reader: Reader) -> LinearOp | None:
    code: Any = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None or "training" not in code.co_names:
        return None
    twin = exact(module)
    twin.training = True  # the norms inside stay in eval mode
    return Forward(Reader(reader.like), twin).apply(the_input(reader.like))


def _by_impulses(module: nn.Module, reader: Reader) -> LinearOp | None:
    """The kernel of a module with stride 1 that keeps the size, from its responses to single pixels.

    The image is as large as all kernels composed. The response to a 1 in its center, flipped, is the kernel; the
    response to zeros is the bias.
    """
    convs = [part for part in module.modules() if isinstance(part, _ConvNd)]
    channels, ndim = convs[0].in_channels, len(convs[0].kernel_size)
    reach = [sum(conv.dilation[axis] * (conv.kernel_size[axis] - 1) for conv in convs) for axis in range(ndim)]
    size = [2 * r + 1 for r in reach]
    if channels**2 * torch.Size(size).numel() > _MOST or reader.like.is_meta:
        return None
    twin = without_hooks(exact(module))
    x = reader.like.new_zeros(channels + 1, channels, *size)
    for channel in range(channels):
        x[channel, channel].flatten()[x[0, 0].numel() // 2] = 1
    y: Tensor = twin.forward(x)
    if tuple(y.shape[2:]) != tuple(size):
        return None
    bias = y[-1].flatten(1)[:, y[-1, 0].numel() // 2]
    answers = (y[:-1] - y[-1:]).transpose(0, 1).flip(tuple(range(2, 2 + ndim)))
    weight = _trimmed(answers)
    pads = tuple((k // 2, k // 2) for k in weight.shape[2:])
    return LinearOp(Kernel(weight.contiguous(), bias), (1,) * ndim, (1,) * ndim, 1, pads)


def _trimmed(weight: Tensor) -> Tensor:
    """Remove outer taps that are all zero, as many on both sides."""
    for axis in range(2, weight.dim()):
        used = weight.abs().amax(tuple(a for a in range(weight.dim()) if a != axis)).nonzero().flatten()
        middle = weight.shape[axis] // 2
        reach = int((used - middle).abs().max()) if len(used) else 0
        weight = weight.narrow(axis, middle - reach, 2 * reach + 1)
    return weight
