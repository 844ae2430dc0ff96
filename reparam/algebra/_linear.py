"""Linear torch modules as affine convolutions."""

from __future__ import annotations

from fractions import Fraction
from functools import singledispatch
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..errors import NotLinearError
from . import _kernels as kernels
from ._axes import pool_axes
from ._kernels import Kernel
from ._spec import ConvSpec, Pads, convolve


class LinearOp(NamedTuple):
    """A linear map of patches: a kernel, and the geometry that the kernel alone does not tell.

    One that treats every pixel and channel on its own, y[c] = W[c] x[c] + b[c], may be *pointwise*, without axes, with
    W of shape (C, 1). C = 1 says that all channels are treated alike: the input itself is W = [[1]], b = [0].
    """

    kernel: Kernel
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pads: Pads = ()
    """Pixels added around the input, per axis; negative ones crop. Without any, the convolution is valid."""
    padding_mode: str = "zeros"
    flat: bool = False
    """Whether it is a linear layer, of vectors, which is kept as a convolution with one tap on one axis."""
    turned: bool = False
    """Whether the channels of the output are on another axis than those of the input."""
    reads: tuple[int, int] | None = None
    """The first channel that is read, and how many the input has; None: all are read."""
    shifts: bool = True
    """Whether there may be a bias that is not zero; on the meta device this is all that is known of it."""
    untouched: bool = False
    """Whether it is the input itself, padded perhaps."""
    tiles: bool = False
    """Whether the image is known to be a whole number of strides large, each pixel of which is read once."""

    @property
    def ndim(self) -> int:
        """Number of axes; 0 for a pointwise one."""
        return len(self.stride)

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.kernel.weight.shape[0]

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.reads[1] if self.reads else self.kernel.weight.shape[1] * self.groups

    @property
    def is_padded(self) -> bool:
        """Whether pixels are added or cropped."""
        return any(map(any, self.pads))

    @property
    def multiply_adds(self) -> Fraction:
        """Of this operation, for each pixel of the input."""
        if self.untouched:
            return Fraction(0)
        return Fraction(self.kernel.weight.numel(), prod(self.stride))

    def spec(self) -> ConvSpec:
        """The geometry of the convolution that this is.

        Raises:
            NotLinearError: if it is a linear layer, or no `nn.Conv` pads or reads its input like this.
        """
        if (
            self.flat
            or self.turned
            or not self.ndim
            or self.reads
            or any(low != high or low < 0 for low, high in self.pads)
        ):
            raise NotLinearError(f"it is linear, but no convolution: axes {self.ndim}, pads {self.pads}")
        padding = tuple(low for low, _ in self.pads) or 0
        geometry = self.kernel.size, self.stride, padding, self.dilation, self.groups, True, self.padding_mode
        return ConvSpec(self.inputs, self.outputs, *geometry, ndim=self.ndim)

    def apply(self, x: Tensor, pads: Pads | None = None, padding_mode: str = "zeros") -> Tensor:
        """The convolution of x (N, C, *size), padded before if `pads` are given."""
        weight, bias = self.kernel
        return convolve(
            x,
            weight,
            bias,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            pads=pads,
            padding_mode=padding_mode,
        )


def identity_op(channels: int, ndim: int, like: Tensor) -> LinearOp:
    """The operation that does nothing, one group per channel."""
    ones = (1,) * ndim
    return LinearOp(kernels.identity(channels, channels, ndim, like), ones, ones, channels, shifts=False)


@singledispatch
def linear_op(module: nn.Module, channels: int, like: Tensor) -> LinearOp:
    """The operation of a linear torch module on an input of `channels` channels.

    Further types are made known with `@linear_op.register`.

    Args:
        module: a convolution without padding, a pooling, a batch norm in eval mode, ...
        channels: of its input; a pooling does not know them.
        like: gives dtype and device to kernels that have no parameters.

    Raises:
        NotLinearError: if the module is not linear, or pads on its own.
    """
    raise NotLinearError(
        f"{type(module).__name__} is not linear, as far as is known; a branch may hold convolutions, batch norms, "
        "average pools and identities, and an activation belongs outside of the block"
    )


@linear_op.register
def _(module: _ConvNd, channels: int, like: Tensor) -> LinearOp:
    if isinstance(module, _ConvTransposeNd):
        raise NotLinearError(f"{type(module).__name__} is equal to no plain convolution")
    geometry = module.stride, module.padding, module.dilation, module.groups
    return conv_op(module.weight, module.bias, *geometry, module.padding_mode)


@linear_op.register
def _(module: nn.Linear, channels: int, like: Tensor) -> LinearOp:
    return vector_op(module.weight, module.bias)


@linear_op.register(nn.AvgPool1d)
@linear_op.register(nn.AvgPool2d)
@linear_op.register(nn.AvgPool3d)
def _(module: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d, channels: int, like: Tensor) -> LinearOp:
    padding, ndim = module.padding, pool_axes(module)
    size, stride, pads = (
        (v,) * ndim if isinstance(v, int) else tuple(v) for v in (module.kernel_size, module.stride, padding)
    )
    if module.ceil_mode:
        raise NotLinearError(f"{type(module).__name__} has ceil_mode=True, which pads by the size of its input")
    if any(pads) and not module.count_include_pad:
        raise NotLinearError(f"{type(module).__name__} divides by another number at the border")
    weight = torch.ones(channels, 1, *size, dtype=like.dtype, device=like.device)
    weight = weight / (getattr(module, "divisor_override", None) or weight[0].numel())
    return conv_op(weight, None, stride, pads, (1,) * ndim, channels)


@linear_op.register
def _(module: nn.Identity, channels: int, like: Tensor) -> LinearOp:
    raise NotLinearError("Identity has nothing to do inside a branch; leave it out")


def conv_op(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> LinearOp:
    """A convolution, from what torch's functions of that name take."""
    size = tuple(weight.shape[2:])
    if padding == "same":
        pads = ConvSpec(groups, groups, size, 1, "same", dilation, ndim=len(size)).pads
    else:
        pads = tuple((p, p) for p in _each((0 if padding == "valid" else padding), size))
    pads = pads if any(map(any, pads)) else ()
    kernel = Kernel(weight, weight.new_zeros(len(weight)) if bias is None else bias)
    return LinearOp(
        kernel, _each(stride, size), _each(dilation, size), groups, pads, padding_mode, shifts=bias is not None
    )


def vector_op(weight: Tensor, bias: Tensor | None = None) -> LinearOp:
    """A linear layer, from what `torch.nn.functional.linear` takes."""
    kernel = Kernel(weight[..., None], weight.new_zeros(len(weight)) if bias is None else bias)
    return LinearOp(kernel, (1,), (1,), 1, flat=True, shifts=bias is not None)


def _each(value: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) * len(size) if isinstance(value, int) else tuple(value)
    return values * len(size) if len(values) == 1 else values


def check_valid(module: nn.Module, op: LinearOp) -> LinearOp:
    """Checks that a module neither pads on its own nor takes vectors, as inside of a branch.

    Raises:
        NotLinearError: if it does.
    """
    if op.is_padded:
        raise NotLinearError(
            f"{type(module).__name__} has padding={getattr(module, 'padding', op.pads)!r}, but inside a branch only "
            "the input is padded, by the padding of the ConvSpec; build it with padding=0"
        )
    if op.flat:
        raise NotLinearError(
            f"{type(module).__name__} is a linear layer, of vectors; a 1x1 convolution is one of images"
        )
    return op
