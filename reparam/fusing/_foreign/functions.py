"""torch's functions and methods as operations on linear maps: what a forward may do between its layers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...algebra._affine import add, after, concat, padded, pointwise, repeated, scaled, select, turned, unshuffled
from ...algebra._axes import CONVOLVE
from ...algebra._linear import LinearOp, conv_op, vector_op
from ...errors import NotLinearError
from .layers import pads_of


class ProductError(NotLinearError):
    """Two values that depend on the input are multiplied, which is not linear."""


def channel_vector(value: LinearOp, constant: Tensor | float) -> Tensor:
    """A constant that scales or shifts channels, as a vector (C,) or (1,)."""
    like = value.kernel.bias
    if not isinstance(constant, Tensor):
        return like.new_full((1,), float(constant))
    constant = constant.to(like)
    if constant.numel() == 1:
        return constant.reshape(1)
    trailing = 0 if value.flat else value.ndim or max(2, constant.dim() - 2)
    axis = constant.dim() - 1 - trailing
    if axis < 0 or constant.shape[axis] != constant.numel():
        raise NotLinearError(f"a constant of shape {tuple(constant.shape)} is not one number per channel")
    return constant.flatten()


def times(a: Any, b: Any) -> LinearOp:
    """a * b, if at least one is a constant."""
    value, factor = (a, b) if isinstance(a, LinearOp) else (b, a)
    if isinstance(factor, LinearOp):
        raise ProductError("two values that depend on the input are multiplied")
    return scaled(value, channel_vector(value, factor))


def plus(a: Any, b: Any, alpha: float = 1) -> LinearOp:
    """a + alpha b; either may be a constant."""
    b = times(b, alpha) if isinstance(b, LinearOp) and alpha != 1 else alpha * b if not isinstance(b, LinearOp) else b
    if isinstance(a, LinearOp) and isinstance(b, LinearOp):
        return add(a, b)
    value, constant = (a, b) if isinstance(a, LinearOp) else (b, a)
    if not isinstance(constant, Tensor) and constant == 0:  # the start of `sum`
        return value
    shift = channel_vector(value, constant)
    return scaled(value, torch.ones_like(shift), shift)


def _divided(a: Any, b: Any, rounding_mode: str | None = None) -> LinearOp:
    if isinstance(b, LinearOp) or rounding_mode:
        raise NotLinearError("something is divided by a value that depends on the input, or rounded")
    return times(a, 1 / b)


def _lerp(a: LinearOp, b: LinearOp, weight: Any) -> LinearOp:
    return plus(times(a, 1 - weight), times(b, weight))


def as_it_is(value: LinearOp, *_: Any, **__: Any) -> LinearOp:
    """The value, unchanged."""
    return value


def _cast(value: LinearOp, *args: Any, **kwargs: Any) -> LinearOp:
    """Cast to another dtype, which must not round."""
    for one in (*args, *kwargs.values()):
        if isinstance(one, torch.dtype) and not one.is_floating_point:
            raise NotLinearError(f"a value is rounded to {one}")
    return value


def _convolved(
    x: LinearOp, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> LinearOp:  # fmt: skip
    return after(x, conv_op(weight, bias, stride, padding, dilation, groups))


def _pad(x: LinearOp, pad: Any, mode: str = "constant", value: float | None = None) -> LinearOp:
    if value:
        raise NotLinearError(f"{value} is padded")
    return after(x, pads_of(pad, mode, x.kernel.bias))


def _pool(
    ndim: int, x: LinearOp, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> LinearOp:  # fmt: skip
    size = (kernel_size,) * ndim if isinstance(kernel_size, int) else tuple(kernel_size)
    padding = (padding,) * ndim if isinstance(padding, int) else tuple(padding)
    if ceil_mode or (any(padding) and not count_include_pad):
        raise NotLinearError("a pool divides by less at the border, or its padding depends on the input size")
    weight = x.kernel.bias.new_ones(1, 1, *size)
    weight = weight / (divisor_override or weight.numel())
    return after(x, conv_op(weight, None, stride or size, padding))


def _batch_norm(
    x: LinearOp, running_mean: Tensor, running_var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> LinearOp:  # fmt: skip
    if training or running_mean is None:
        raise NotLinearError("a batch norm uses batch statistics")
    like = x.kernel.bias
    scale = (running_var.to(like) + eps).rsqrt() * (1 if weight is None else weight.to(like))
    shift = (0 if bias is None else bias.to(like)) - running_mean.to(like) * scale
    return after(x, pointwise(scale, shift))


def _dropout(x: LinearOp, p: float = 0.5, training: bool = True, inplace: bool = False) -> LinearOp:
    if training and p:
        raise NotLinearError("dropout is active")
    return x


def _cat(values: Sequence[Any], dim: int = 0) -> LinearOp:
    if not all(isinstance(value, LinearOp) for value in values):
        raise NotLinearError("a constant is concatenated")
    ndim = max(value.ndim for value in values)
    if dim not in ((-1,) if values[0].flat else (1, -1 - ndim) if ndim else (1,)):
        raise NotLinearError(f"values are concatenated along axis {dim}")
    return concat(values)


def _zeros_like(x: LinearOp, **_: Any) -> LinearOp:
    return scaled(x, x.kernel.bias.new_zeros(1))


def take(x: LinearOp, index: Any) -> LinearOp:
    """x[index]: a selection of channels, or a crop at the border."""
    index = index if isinstance(index, tuple) else (index,)
    everything = slice(None)
    if len(index) < 2 or index[0] != everything or any(not isinstance(part, slice) for part in index):
        raise NotLinearError(f"part {index} is taken out of a value")
    if index[1] != everything:
        x = channels(x, index[1])
    pads = []
    for part in index[2:]:
        start, stop = part.start or 0, part.stop or 0
        if start < 0 or stop > 0 or part.step not in (None, 1):
            raise NotLinearError(f"part {index} is taken out of a value")
        pads.append((-start, stop))
    return after(x, padded(tuple(pads), "zeros", x.kernel.bias)) if any(map(any, pads)) else x


def channels(x: LinearOp, part: slice) -> LinearOp:
    """Some of the channels of a value."""
    _check_known(x)
    start, stop, step = part.indices(x.outputs)
    if step != 1 or x.flat:
        raise NotLinearError(f"part {part} of the channels is taken out")
    return select(x, start, stop)


def _check_known(x: LinearOp) -> None:
    if x.outputs == 1 and not x.ndim and not x.reads:
        raise NotLinearError("channels are selected from a value with an unknown number of channels")


def _chunk(x: LinearOp, chunks: int, dim: int = 0) -> list[LinearOp]:
    _check_known(x)
    return _split(x, -(-x.outputs // chunks), dim)


def _split(x: LinearOp, sizes: Any, dim: int = 0) -> list[LinearOp]:
    if dim != 1 or x.flat:
        raise NotLinearError(f"a value is split along axis {dim}")
    if isinstance(sizes, int):
        _check_known(x)
        whole, rest = divmod(x.outputs, sizes)
        sizes = [sizes] * whole + [rest] * bool(rest)
    if x.outputs == 1 and not x.ndim:
        x = repeated(x, sum(sizes))
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [channels(x, slice(end - size, end)) for end, size in zip(ends, sizes)]


def _sum(values: Any, *args: Any, **kwargs: Any) -> LinearOp:
    """The sum of values that were stacked along this axis."""
    if not isinstance(values, Stacked) or (args or tuple(kwargs.values())) != (values.dim,):
        raise NotLinearError("a value is summed")
    return reduce(plus, values.values)


def _mean(values: Any, *args: Any, **kwargs: Any) -> LinearOp:
    return times(_sum(values, *args, **kwargs), 1 / len(getattr(values, "values", ())))


def _permute(x: LinearOp, *dims: Any) -> LinearOp:
    """Move the channels to the last axis, or back."""
    order = tuple(dims[0]) if len(dims) == 1 else dims
    axes = len(order)
    order = tuple(dim % axes for dim in order)
    for flat, known in ((True, (0, *range(2, axes), 1)), (False, (0, axes - 1, *range(1, axes - 1)))):
        if order == known and axes > 2 and not (axes == 3 and flat == x.flat):
            return turned(x, axes - 2, flat)
    raise NotLinearError(f"axes are permuted to {order}")


def pixel_unshuffle(x: LinearOp, downscale_factor: int) -> LinearOp:
    """Like torch's `pixel_unshuffle`."""
    _check_known(x)
    return unshuffled(x, downscale_factor)


def _narrow(x: LinearOp, dim: int, start: int, length: int) -> LinearOp:
    if dim != 1 or start < 0:
        raise NotLinearError(f"part of axis {dim} is taken out of a value")
    return channels(x, slice(start, start + length))


def _matmul(x: Any, weight: Any) -> LinearOp:
    """x @ weight, for vectors."""
    if not isinstance(x, LinearOp) or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise NotLinearError("a value is multiplied by a matrix from the left, or by something other than a matrix")
    return after(x, vector_op(weight.t()))


class Stacked:
    """Values stacked along a new axis, to be summed over it."""

    def __init__(self, values: Sequence[Any], dim: int = 0) -> None:
        self.values, self.dim = values, dim


def _of_rows(x: LinearOp, start: int = 0, end: int = -1) -> LinearOp:
    """flatten(0, 1), which keeps vectors as vectors."""
    if not x.flat or (start, end) != (0, 1):
        raise NotLinearError("a value is flattened")
    return x


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.neg: lambda x: times(x, -1),
    F.linear: lambda x, weight, bias=None: after(x, vector_op(weight, bias)),
    F.pad: _pad,
    F.dropout: _dropout,
    F.batch_norm: _batch_norm,
    F.avg_pool1d: partial(_pool, 1),
    F.avg_pool2d: partial(_pool, 2),
    F.avg_pool3d: partial(_pool, 3),
    torch.lerp: _lerp,
    torch.stack: lambda tensors, dim=0: Stacked(tensors, dim),
    torch.sum: _sum,
    torch.mean: _mean,
    torch.zeros_like: _zeros_like,
    torch.chunk: _chunk,
    torch.split: _split,
    operator.getitem: lambda x, index: take(x, index) if isinstance(x, LinearOp) else x[index],
    sum: lambda values, start=0: reduce(plus, values, start),
    torch.clone: as_it_is,
    torch.addcmul: lambda x, a, b, value=1: plus(x, times(a, b), value),
    torch.permute: _permute,
    torch.narrow: _narrow,
    torch.addmm: lambda bias, x, weight: plus(_matmul(x, weight), bias),
    F.pixel_unshuffle: pixel_unshuffle,
    operator.pos: as_it_is,
}
FUNCTIONS |= dict.fromkeys(CONVOLVE.values(), _convolved)
FUNCTIONS |= dict.fromkeys((torch.cat, torch.concat, torch.concatenate), lambda tensors, dim=0: _cat(tensors, dim))
FUNCTIONS |= dict.fromkeys((operator.add, operator.iadd, torch.add), plus)
FUNCTIONS |= dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), times)
FUNCTIONS |= dict.fromkeys((operator.truediv, operator.itruediv, torch.div, torch.true_divide), _divided)
FUNCTIONS |= dict.fromkeys((operator.sub, operator.isub, torch.sub), lambda a, b, alpha=1: plus(a, b, -alpha))
METHODS: dict[str, Callable[..., Any]] = dict.fromkeys(("reshape_as", "view_as", "contiguous", "clone"), as_it_is)
METHODS |= dict.fromkeys(("add", "add_"), plus) | dict.fromkeys(("mul", "mul_"), times)
METHODS |= dict.fromkeys(("sub", "sub_"), FUNCTIONS[operator.sub]) | dict.fromkeys(("div", "div_"), _divided)
METHODS |= dict.fromkeys(("to", "type_as", "float", "double", "half", "bfloat16"), _cast)
METHODS |= {"neg": FUNCTIONS[operator.neg], "lerp": _lerp, "chunk": _chunk, "split": _split, "flatten": _of_rows}
METHODS |= {
    "permute": _permute,
    "narrow": _narrow,
    "matmul": _matmul,
    "addcmul": FUNCTIONS[torch.addcmul],
    "sum": _sum,
    "mean": _mean,
}
FUNCTIONS |= dict.fromkeys((torch.matmul, torch.mm, operator.matmul), _matmul)
FUNCTIONS |= dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), _dropout)
WEIGHED = (F.linear, *CONVOLVE.values())
"""Functions that take a weight."""
