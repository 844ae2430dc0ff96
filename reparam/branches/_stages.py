"""Small linear modules as stages of chains: a scale per channel, a fixed filter, a 1x1 plus identity."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp, linear_op
from ..modules._constants import constant


class ChannelScale(nn.Module):
    r"""A learned scale s per channel, or one for all channels, as a stage of chains: y = s x.

    To scale a whole branch, use `ScaledBranch`.

    Args:
        channels: channels of input and output.
        ndim: number of spatial axes.
        start: initial value of s.
        shared: whether all channels have the same s, which then has shape (1,) instead of (channels,).
        learned: whether s is a parameter; otherwise it is a constant buffer.
    """

    drawn_as = "scale"
    scale: Tensor

    def __init__(
        self, channels: int, ndim: int, *, start: float = 1.0, shared: bool = False, learned: bool = True
    ) -> None:
        super().__init__()
        scale = torch.full((1 if shared else channels,), float(start))
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.channels, self.ndim = channels, ndim

    def forward(self, x: Tensor) -> Tensor:
        """Scale x of shape (N, C, *size)."""
        return linear_op(self, x.shape[1], x).apply(x)


@linear_op.register
def _(module: ChannelScale, channels: int, like: Tensor) -> LinearOp:
    return per_channel(module.scale.expand(channels), module.ndim)


class FixedFilter(nn.Module):
    r"""A depthwise convolution with a fixed filter, a learned scale per channel and a bias: y = s (m * x) + b.

    Args:
        mask: m, of shape (*size), or (channels, 1, *size) for another filter in every channel.
        channels: channels of input and output.
        stride: stride of the filter.
        dilation: dilation of the filter.
        scale: initial value of s; None means small random values.
        bias: whether there is a bias b.
        drawn_as: what the filter is called in drawings.
    """

    def __init__(
        self,
        mask: Tensor,
        channels: int,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        *,
        scale: float | None = None,
        bias: bool = True,
        drawn_as: str = "filter",
    ) -> None:
        super().__init__()
        self.drawn_as = drawn_as
        ones = (channels, *(1,) * (1 + len(stride)))
        # Small, as in ECBSR's code: the edge branches start as a small correction.
        self.scale = nn.Parameter(1e-3 * torch.randn(ones) if scale is None else torch.full(ones, scale))
        self.bias = nn.Parameter(1e-3 * torch.randn(channels)) if bias else None
        self.register_buffer("mask", mask.expand(channels, 1, *mask.shape[-len(stride) :]).clone())
        self.mask: Tensor
        self.stride, self.dilation = stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        """Filter x of shape (N, C, *size)."""
        return linear_op(self, x.shape[1], x).apply(x)


@linear_op.register
def _(module: FixedFilter, channels: int, like: Tensor) -> LinearOp:
    bias = module.scale.new_zeros(module.scale.shape[0]) if module.bias is None else module.bias
    kernel = Kernel(module.scale * module.mask, bias)
    return LinearOp(kernel, module.stride, module.dilation, module.scale.shape[0], shifts=module.bias is not None)


class IdentityPlusPoint(nn.Module):
    r"""A 1x1 convolution plus a fixed identity: y = (E + W) x, both of shape (out, C / groups, 1, ...).

    W starts at zero. E copies input channel (o modulo C / groups) of its group to output channel o, so it is the
    identity if out = C.

    Args:
        channels: C.
        groups: number of independent channel groups.
        ndim: number of spatial axes.
        out_channels: out; None means C.
        keep: whether E is part of the state dict.
    """

    drawn_as = "identity + conv"

    def __init__(
        self, channels: int, groups: int, ndim: int, *, out_channels: int | None = None, keep: bool = False
    ) -> None:
        super().__init__()
        make = partial(_unit, channels if out_channels is None else out_channels, channels // groups, ndim)
        if keep:
            self.register_buffer("unit", make())
        else:
            constant(self, "unit", make)
        self.unit: Tensor
        self.weight = nn.Parameter(torch.zeros_like(self.unit))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution to x of shape (N, C, *size)."""
        return linear_op(self, x.shape[1], x).apply(x)


def _unit(outputs: int, inputs: int, ndim: int) -> Tensor:
    unit = torch.eye(inputs).repeat(-(-outputs // inputs), 1)[:outputs]
    return unit.reshape(outputs, inputs, *(1,) * ndim)


@linear_op.register
def _(module: IdentityPlusPoint, channels: int, like: Tensor) -> LinearOp:
    weight = module.unit + module.weight
    ones = (1,) * (weight.dim() - 2)
    return LinearOp(Kernel(weight, weight.new_zeros(weight.shape[0])), ones, ones, module.groups, shifts=False)


def per_channel(scale: Tensor, ndim: int) -> LinearOp:
    """The operation that multiplies every channel by its entry of `scale`, which has shape (C,)."""
    weight = scale.reshape(-1, 1, *(1,) * ndim)
    ones = (1,) * ndim
    return LinearOp(Kernel(weight, weight.new_zeros(weight.shape[0])), ones, ones, weight.shape[0], shifts=False)
