"""Linear torch modules as affine convolutions, and chains of them as one."""

from __future__ import annotations

from fractions import Fraction
from functools import singledispatch
from math import gcd, prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..errors import NotLinearError, SpecError
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


def then(first: LinearOp, second: LinearOp, between: tuple[Tensor, Tensor] | None = None) -> LinearOp:
    """The operation `second(first(x))`, of valid convolutions.

    Args:
        first: runs first.
        second: runs after it.
        between: scale and shift of a batch norm between the two, of shape (C,) each.
    """
    stride = tuple(s1 * s2 for s1, s2 in zip(first.stride, second.stride))
    bias, shifts = second.kernel.bias, first.shifts or between is not None
    if shifts:
        before = first.kernel.bias if between is None else _scaled_bias(first, *between)
        bias = kernels.shifted_before(before, second.kernel, second.groups)
    if between is not None:
        first, second = _with_scale(first, between[0], second)
    weight, grid, groups = _composed(first, second)
    return LinearOp(Kernel(weight, bias), stride, grid, groups, shifts=shifts or second.shifts)


def _with_scale(first: LinearOp, scale: Tensor, second: LinearOp) -> tuple[LinearOp, LinearOp]:
    """Both operations, with a scale between them in the smaller of their weights."""
    (inner, before), (outer, bias) = first.kernel, second.kernel
    scale = scale.to(inner)  # a batch norm may be of higher precision
    if inner.numel() <= outer.numel():
        return first._replace(kernel=Kernel(kernels.scaled(inner, scale), before)), second
    return first, second._replace(kernel=Kernel(kernels.scaled_before(scale, outer, second.groups), bias))


def _composed(first: LinearOp, second: LinearOp) -> tuple[Tensor, tuple[int, ...], int]:
    """The weight of `second(first(x))`, its dilation and its groups."""
    inner, outer = first.kernel.weight, second.kernel.weight
    grid, ratio1, ratio2 = _one_grid(first, second)
    depthwise = second.groups == second.outputs == first.outputs
    if depthwise and 1 in (prod(first.kernel.size), prod(second.kernel.size)):
        return inner * outer, grid, first.groups  # not a sum of almost only zeros
    if prod(second.kernel.size) == 1 and first.groups % second.groups == 0:
        return kernels.gathered(inner, outer, first.groups, second.groups), grid, second.groups  # likewise
    groups = gcd(first.groups, second.groups)
    inner = kernels.dilate(kernels.regroup(first.kernel, first.groups, groups), ratio1).weight
    outer = kernels.regroup(second.kernel, second.groups, groups).weight
    return kernels.composed(inner, outer, groups, ratio2), grid, groups


def scaled(op: LinearOp, scale: Tensor, shift: Tensor) -> LinearOp:
    """The operation `scale * op(x) + shift`, both of shape (out,): what a batch norm does after it."""
    weight = kernels.scaled(op.kernel.weight, scale.to(op.kernel.weight))
    return op._replace(kernel=Kernel(weight, _scaled_bias(op, scale, shift)), shifts=True)


def _scaled_bias(op: LinearOp, scale: Tensor, shift: Tensor) -> Tensor:
    bias = op.kernel.bias
    scale, shift = scale.to(bias), shift.to(bias)  # a batch norm may be of higher precision
    return bias * scale + shift if op.shifts else shift


def _one_grid(first: LinearOp, second: LinearOp) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A grid that holds the taps of both, in pixels of the input, and the steps of either on it.

    The outputs of `first` lie s1 pixels apart, and so the taps of `second` d2 * s1:

        first    3 taps, d1 = 2         1 . 1 . 1
        second   2 taps, d2 * s1 = 3    2 . . 2
        both     grid gcd(2, 3) = 1     * . * * * * . *     0, 2, 4 and 3, 5, 7
    """
    # One tap fits every grid, which gcd's neutral 0 says.
    fine = [d if k > 1 else 0 for d, k in zip(first.dilation, first.kernel.size)]
    coarse = [d * s if k > 1 else 0 for d, s, k in zip(second.dilation, first.stride, second.kernel.size)]
    grid = tuple(gcd(d1, d2) or 1 for d1, d2 in zip(fine, coarse))
    return grid, tuple(d // g or 1 for d, g in zip(fine, grid)), tuple(d // g or 1 for d, g in zip(coarse, grid))


def place(op: LinearOp, ring: Pads, spec: ConvSpec) -> Kernel:
    """The kernel of the first part of a chain, with all taps of `spec`, from the patch of an output position.

    Args:
        op: what has run so far, of stride 1.
        ring: what the rest of the chain crops of its output, as negative pads.
        spec: of the whole chain, dense and without dilation.

    A position of the output has a patch, and of what the first part makes of that patch one value is its own; here a
    1x1 convolution, a, in front of a 3x3 one, which crops one value on each side:

        patch    x x x
        made     1 1 1     ring = -1 on both sides
        kernel   0 a 0     the first part, where the output is
    """
    kernel = kernels.regroup(op.kernel, op.groups, spec.groups)
    around = [-pixels for pair in reversed(ring) for pixels in pair]
    if any(around):
        kernel = Kernel(F.pad(kernel.weight, around), kernel.bias)
    return kernels.embed(kernel, spec.kernel_size)


def fit(op: LinearOp, spec: ConvSpec, embedded: bool = True) -> Kernel:
    """The kernel of `op` written in the geometry of `spec`; with its own number of taps if not `embedded`.

    Raises:
        SpecError: if they differ in channels, stride, or have taps or groups that the spec has not.
    """
    weight, size = op.kernel.weight, op.kernel.size
    came = (weight.shape[1] * op.groups, weight.shape[0], op.stride)
    wanted = (spec.in_channels, spec.out_channels, spec.stride)
    for name, have, want in zip(("in_channels", "out_channels", "stride"), came, wanted):
        if have != want:
            raise SpecError(f"the branch has {name}={have}, but its spec asks for {name}={want}")
    if op.groups % spec.groups:
        raise SpecError(
            f"the branch has groups={op.groups}, which mixes channels that the spec with groups={spec.groups} "
            "keeps apart"
        )
    if any(k > 1 and d % want for k, d, want in zip(size, op.dilation, spec.dilation)):
        raise SpecError(f"the branch has dilation={op.dilation}, but its spec has taps at dilation={spec.dilation}")
    ratio = tuple(d // want if k > 1 else 1 for k, d, want in zip(size, op.dilation, spec.dilation))
    kernel = kernels.dilate(kernels.regroup(op.kernel, op.groups, spec.groups), ratio)
    return kernels.embed(kernel, spec.kernel_size) if embedded else kernel
