"""torch's linear layers, norms and functions as affine values."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from ...algebra._axes import pool_axes
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp, linear_op
from ...algebra._spec import ConvSpec, Pads
from ...bn._norm import is_norm, stored_scale_shift
from ...errors import NotLinearError
from .affine import Affine, after, padded, pointwise, scaled, the_input
from .exact import exact, numbers
from .sums import add


def norm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, both (C,), of a batch norm with its stored statistics, frozen or not.

    Raises:
        NotLinearError: if a frozen one does something else in its forward.
    """
    if is_norm(norm):
        return stored_scale_shift([norm])
    like: Any = norm.running_var
    scale, shift = _measured(norm)
    return scale.to(like), shift.to(like)


def _measured(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a frozen norm, by running it: DETR's and others' have their eps in the forward alone.

    Raises:
        NotLinearError: if it does something else than scale and shift channels.
    """
    bare = exact(norm)
    for name in bare._modules:  # the activation of timm's, which runs afterwards
        bare._modules[name] = nn.Identity()
    var: Tensor = bare.running_var
    for ones in ((1, 1), (1,), (1, 1, 1)):
        zeros = var.new_zeros(1, len(var), *ones)
        far = zeros + 2.0**40  # so far that the shift takes no digits from the scale
        x = numbers((2, len(var), *(k + 1 for k in ones), 3)[: len(ones) + 2], var)
        try:
            shift, high, y = (bare.forward(value) for value in (zeros, far, x))
        except Exception:  # a foreign forward may raise anything; it may want another number of axes
            continue
        scale = (high - shift) / 2.0**40
        if y.shape == x.shape and (var.is_meta or torch.allclose(y, scale * x + shift, 1e-9, 1e-9)):
            return scale.flatten(), shift.flatten()
    raise NotLinearError(f"the forward of {type(norm).__name__} is no scale and shift of channels")


@singledispatch
def layer_affine(layer: nn.Module, like: Tensor) -> Affine:
    """What a layer of torch's does, in eval mode; `like` gives dtype and device to what has no parameters.

    Raises:
        NotLinearError: if it is not linear.
    """
    raise NotLinearError(f"{type(layer).__name__} is not linear")


@layer_affine.register(nn.Identity)
@layer_affine.register(_DropoutNd)
def _(layer: nn.Module, like: Tensor) -> Affine:
    return the_input(like)


@layer_affine.register
def _(layer: nn.Linear, like: Tensor) -> Affine:
    return _linear(layer.weight, like.new_zeros(layer.out_features) if layer.bias is None else layer.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> Affine:
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return Affine(LinearOp(Kernel(weight[..., None], bias), (1,), (1,), 1), flat=True)


@layer_affine.register
def _(layer: _ConvNd, like: Tensor) -> Affine:
    if isinstance(layer, _ConvTransposeNd):
        raise NotLinearError(f"{type(layer).__name__} is equal to no plain convolution")
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    bias = like.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
    return _conv(layer.weight, bias, *geometry, layer.padding_mode)


def _conv(
    weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1, mode: str = "zeros"
) -> Affine:
    """A convolution, from what torch's function of that name takes."""
    out, inputs, *size = weight.shape
    spec = ConvSpec(inputs * groups, out, size, stride, padding, dilation, groups, padding_mode=mode, ndim=len(size))
    bias = weight.new_zeros(out) if bias is None else bias
    return Affine(LinearOp(Kernel(weight, bias), spec.stride, spec.dilation, groups), spec.pads, mode)


@layer_affine.register(nn.AvgPool1d)
@layer_affine.register(nn.AvgPool2d)
@layer_affine.register(nn.AvgPool3d)
def _(layer: Any, like: Tensor) -> Affine:
    pads = _pairs(layer.padding, pool_axes(layer))
    if any(map(any, pads)) and not layer.count_include_pad:
        raise NotLinearError(f"{type(layer).__name__} divides by another number at the border")
    bare = copy.copy(layer)
    bare.padding = 0
    return Affine(linear_op(bare, 1, like), pads)  # of one channel, for all alike


def _pairs(padding: int | tuple[int, ...], ndim: int) -> Pads:
    amounts = (padding,) * ndim if isinstance(padding, int) else padding
    return tuple((amount, amount) for amount in amounts)


def norm_affine(norm: nn.Module, like: Tensor) -> Affine:
    """What a norm does, and what the modules in it do afterwards (timm's norms hold their activation)."""
    value = pointwise(*norm_scale_shift(norm))
    for following in norm.children():
        value = after(value, layer_affine(following, like))
    return value


def channel_vector(value: Affine, constant: Tensor | float) -> Tensor | float:
    """A constant that scales or shifts channels as a vector (C,) or (1,)."""
    if not isinstance(constant, Tensor):
        return constant
    if constant.numel() == 1:
        return constant.reshape(1)
    trailing = 0 if value.flat else value.ndim or 2
    axis = constant.dim() - 1 - trailing
    if axis < 0 or constant.shape[axis] != constant.numel():
        raise NotLinearError(f"a constant of shape {tuple(constant.shape)} is no number per channel")
    return constant.flatten()


def _times(a: Any, b: Any) -> Affine:
    value, factor = (a, b) if isinstance(a, Affine) else (b, a)
    if isinstance(factor, Affine):
        raise NotLinearError("two values that depend on the input are multiplied")
    one = value.op.kernel.bias.new_ones(1)
    return scaled(value, channel_vector(value, factor) * one, 0 * one)


def _plus(a: Any, b: Any, alpha: float = 1) -> Affine:
    b = _times(b, alpha) if isinstance(b, Affine) and alpha != 1 else alpha * b if not isinstance(b, Affine) else b
    if isinstance(a, Affine) and isinstance(b, Affine):
        return add(a, b)
    value, constant = (a, b) if isinstance(a, Affine) else (b, a)
    one = value.op.kernel.bias.new_ones(1)
    return scaled(value, one, channel_vector(value, constant) * one)


def _divided(a: Any, b: Any) -> Affine:
    if isinstance(b, Affine):
        raise NotLinearError("something is divided by a value that depends on the input")
    return _times(a, 1 / b)


def _as_it_is(value: Affine, *_: Any, **__: Any) -> Affine:
    return value


def _conv_function(x: Affine, weight: Tensor, *args: Any, **kwargs: Any) -> Affine:
    return after(x, _conv(weight, *args, **kwargs))


def _pad_function(x: Affine, pad: Any, mode: str = "constant", value: float | None = None) -> Affine:
    if value:
        raise NotLinearError(f"{value} is padded")
    pairs = tuple(zip(pad[::2], pad[1::2]))[::-1]
    return after(x, padded(pairs, "zeros" if mode == "constant" else mode, x.op.kernel.bias))


def _crop(x: Affine, index: Any) -> Affine:
    index = index if isinstance(index, tuple) else (index,)
    everything = slice(None)
    if len(index) < 3 or index[0] != everything or index[1] != everything:
        raise NotLinearError(f"part {index} is taken out of a value")
    pads = []
    for part in index[2:]:
        start, stop = (part.start or 0, part.stop or 0) if isinstance(part, slice) else (-1, 0)
        if start < 0 or stop > 0 or part.step not in (None, 1):
            raise NotLinearError(f"part {index} is taken out of a value")
        pads.append((-start, stop))
    return after(x, padded(tuple(pads), "zeros", x.op.kernel.bias))


def _dropout(x: Affine, p: float = 0.5, training: bool = True, inplace: bool = False) -> Affine:
    if training:
        raise NotLinearError("dropout is active")
    return x


def _of_rows(x: Affine, start: int = 0, end: int = -1) -> Affine:
    """flatten(0, 1) of vectors keeps them vectors."""
    if not x.flat or (start, end) != (0, 1):
        raise NotLinearError("a value is flattened")
    return x


FUNCTIONS: dict[Any, Callable[..., Affine]] = {
    operator.neg: lambda x: _times(x, -1),
    F.conv1d: _conv_function,
    F.conv2d: _conv_function,
    F.conv3d: _conv_function,
    F.linear: lambda x, weight, bias=None: after(x, _linear(weight, bias)),
    F.pad: _pad_function,
    F.dropout: _dropout,
    operator.getitem: _crop,
}
FUNCTIONS |= dict.fromkeys((operator.add, operator.iadd, torch.add), _plus)
FUNCTIONS |= dict.fromkeys((operator.mul, operator.imul, torch.mul), _times)
FUNCTIONS |= dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _divided)
FUNCTIONS |= dict.fromkeys((operator.sub, operator.isub, torch.sub), lambda a, b, alpha=1: _plus(a, b, -alpha))
METHODS: dict[str, Callable[..., Affine]] = {"flatten": _of_rows, "reshape_as": _as_it_is, "contiguous": _as_it_is}
METHODS |= dict.fromkeys(("add", "add_"), _plus) | dict.fromkeys(("mul", "mul_"), _times)
METHODS |= {"clone": _as_it_is, "sub": FUNCTIONS[operator.sub], "div": _divided}
