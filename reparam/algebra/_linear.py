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
    """A linear map of patches: a kernel, and the geometry that the kernel alone does not determine.

    A map of each pixel and channel separately, y[c] = W[c] x[c] + b[c], may be *pointwise*: it has no axes, and W has
    shape (C, 1). C = 1 means the same map for every channel; the input itself is W = [[1]], b = [0].
    """

    kernel: Kernel
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pads: Pads = ()
    """Pixels added around the input, per axis; negative values crop. Empty means a valid convolution."""
    padding_mode: str = "zeros"
    flat: bool = False
    """Whether it is a linear layer, which acts on vectors and is stored as a convolution with one tap on one axis."""
    turned: bool = False
    """Whether the channels of the output are on another axis than those of the input."""
    reads: tuple[int, int] | None = None
    """The first channel that is read, and the number of input channels; None means that all are read."""
    shifts: bool = True
    """Whether the bias may differ from zero; on the meta device nothing else is known of it."""
    untouched: bool = False
    """Whether it is the input itself, possibly padded."""
    tiles: bool = False
    """Whether the image size is known to be a multiple of the stride, and each pixel is read once."""

    @property
    def ndim(self) -> int:
        """Number of spatial axes; 0 for a pointwise map."""
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
        """Multiply-adds per pixel of the input."""
        if self.untouched:
            return Fraction(0)
        return Fraction(self.kernel.weight.numel(), prod(self.stride))

    def spec(self) -> ConvSpec:
        """The geometry of the equal `nn.Conv`.

        Raises:
            NotLinearError: if it is a linear layer, or if no `nn.Conv` pads or reads its input this way.
        """
        if (
            self.flat
            or self.turned
            or not self.ndim
            or self.reads
            or any(low != high or low < 0 for low, high in self.pads)
        ):
            raise NotLinearError(f"it is linear, but not a convolution: axes {self.ndim}, pads {self.pads}")
        padding = tuple(low for low, _ in self.pads) or 0
        geometry = self.kernel.size, self.stride, padding, self.dilation, self.groups, True, self.padding_mode
        return ConvSpec(self.inputs, self.outputs, *geometry, ndim=self.ndim)

    def apply(self, x: Tensor, pads: Pads | None = None, padding_mode: str = "zeros") -> Tensor:
        """Convolve x (N, C, *size), after padding it if `pads` are given."""
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
    """The operation y = x, with one group per channel."""
    ones = (1,) * ndim
    return LinearOp(kernels.identity(channels, channels, ndim, like), ones, ones, channels, shifts=False)


@singledispatch
def linear_op(module: nn.Module, channels: int, like: Tensor) -> LinearOp:
    """The operation of a linear torch module on an input of `channels` channels.

    Register further types with `@linear_op.register`.

    Args:
        module: a convolution, an average pool, a batch norm in eval mode, ...
        channels: number of input channels, which an average pool does not know itself.
        like: a tensor with the dtype and device for kernels of modules without parameters.

    Raises:
        NotLinearError: if the module is not known to be linear.
    """
    raise NotLinearError(
        f"{type(module).__name__} is not known to be linear; a branch may hold convolutions, batch norms, "
        "average pools and identities, and an activation belongs outside the block"
    )


@linear_op.register
def _(module: _ConvNd, channels: int, like: Tensor) -> LinearOp:
    if isinstance(module, _ConvTransposeNd):
        raise NotLinearError(f"{type(module).__name__} is not equal to any plain convolution")
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
        raise NotLinearError(f"{type(module).__name__} has ceil_mode=True, so its padding depends on the input size")
    if any(pads) and not module.count_include_pad:
        raise NotLinearError(f"{type(module).__name__} divides by less at the border (count_include_pad=False)")
    weight = torch.ones(channels, 1, *size, dtype=like.dtype, device=like.device)
    weight = weight / (getattr(module, "divisor_override", None) or weight[0].numel())
    return conv_op(weight, None, stride, pads, (1,) * ndim, channels)


@linear_op.register
def _(module: nn.Identity, channels: int, like: Tensor) -> LinearOp:
    raise NotLinearError("Identity does nothing inside a branch; leave it out")


def conv_op(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> LinearOp:
    """A convolution, from the arguments of torch's functional convolutions."""
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
    """A linear layer, from the arguments of `torch.nn.functional.linear`."""
    kernel = Kernel(weight[..., None], weight.new_zeros(len(weight)) if bias is None else bias)
    return LinearOp(kernel, (1,), (1,), 1, flat=True, shifts=bias is not None)


def _each(value: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) * len(size) if isinstance(value, int) else tuple(value)
    return values * len(size) if len(values) == 1 else values


def check_valid(module: nn.Module, op: LinearOp) -> LinearOp:
    """Check that a module can be inside a branch: it neither pads nor takes vectors.

    Raises:
        NotLinearError: if it does.
    """
    if op.is_padded:
        raise NotLinearError(
            f"{type(module).__name__} has padding={getattr(module, 'padding', op.pads)!r}, but a branch pads only its "
            "input, by the padding of the ConvSpec; build the module with padding=0"
        )
    if op.flat:
        raise NotLinearError(
            f"{type(module).__name__} is a linear layer and takes vectors; use a 1x1 convolution for images"
        )
    return op
