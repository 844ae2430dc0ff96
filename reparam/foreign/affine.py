r"""Values of a forward as affine functions of its input: y = conv(pad(x), W, b), and the algebra on them.

A value that treats every pixel and channel on its own, y[c] = W[c] x[c] + b[c], is kept as a *pointwise* op without
axes, W of shape (C, 1). C = 1 says that all channels are treated alike: the input itself is W = [[1]], b = [0].

Weights are large, and what happens to them most is that norms scale their rows and that sums are taken. Both are put
off until somebody needs the weight, and then done for a few rows at a time, which is several times as fast as writing
every step out in float64: a weight may be of the model's dtype, the scale of float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..errors import NotLinearError
from ..kernels import Kernel
from ..linear import LinearOp, then
from ..spec import ConvSpec, Pads

_FEW = 2**17
"""Numbers that are worked on at a time; they should stay in the cache of a processor."""


@dataclass(frozen=True)
class Part:
    """A kernel that is to be added to a larger one."""

    weight: Tensor
    scale: Tensor | None
    taps: tuple[Any, ...]
    """Where in the larger one."""
    depthwise: bool
    """Whether it has one filter per channel and the other has not."""

    def add_into(self, total: Tensor, first: int) -> None:
        """Adds its rows from `first` on to those of the larger kernel."""
        rows = slice(first, first + len(total))
        weight = _product(self.weight[rows], None if self.scale is None else self.scale[rows], total.dtype)
        place = total[self.taps]
        if self.depthwise:
            self._add_to_diagonal(place, weight, first)
        else:
            place += weight

    def _add_to_diagonal(self, place: Tensor, weight: Tensor, first: int) -> None:
        """A filter of channel c goes to row c, and there to the channel that c is in its group."""
        if first + len(place) <= place.shape[1]:
            place.diagonal(first).add_(weight[:, 0].movedim(0, -1))
        else:
            row = torch.arange(len(place), device=place.device)
            place[row, (row + first) % place.shape[1]] += weight[:, 0]


def _product(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    wide = weight.to(dtype)
    if scale is None:
        return wide
    scale = scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return wide * scale if wide is weight or wide.requires_grad else wide.mul_(scale)


@dataclass(frozen=True)
class Affine:
    """A value that is a convolution of the padded input."""

    op: LinearOp
    pads: Pads = ()
    """Pixels added around the input, per axis; negative ones crop."""
    padding_mode: str = "zeros"
    flat: bool = False
    """Whether it is a linear layer, of vectors, which is kept as a convolution with one tap on one axis."""
    scale: Tensor | None = None
    """Of the rows of the weight, (out,), not yet multiplied with them."""
    more: tuple[Part, ...] = ()
    """Not yet added to the weight."""
    untouched: bool = False
    """Whether it is the input, padded perhaps."""

    @property
    def ndim(self) -> int:
        """Number of axes; 0 for a pointwise value."""
        return len(self.op.stride)

    @property
    def is_padded(self) -> bool:
        return any(map(any, self.pads))

    def rows(self, first: int, last: int) -> Tensor:
        """These rows of the weight, worked out, of the dtype of the bias at least."""
        weight, bias = self.op.kernel
        scale = None if self.scale is None else self.scale[first:last]
        total = _product(weight[first:last], scale, torch.promote_types(weight.dtype, bias.dtype))
        if self.more and total.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
            total = total.clone()
        for part in self.more:
            part.add_into(total, first)
        return total

    def settled(self) -> Affine:
        """The same value with all of its weight worked out."""
        if self.scale is None and not self.more:
            return self
        kernel = Kernel(self.rows(0, _outputs(self.op)), self.op.kernel.bias)
        return replace(self, op=self.op._replace(kernel=kernel), scale=None, more=())

    def rounded(self, dtype: torch.dtype) -> Tensor:
        """The weight, rounded once to another dtype."""
        weight = self.op.kernel.weight
        rounded = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        step = max(1, _FEW // max(1, weight[0].numel()))
        for first in range(0, len(weight), step):
            rounded[first : first + step] = self.rows(first, min(first + step, len(weight)))
        return rounded

    def spec(self) -> ConvSpec:
        """The geometry of the convolution that this value is.

        Raises:
            NotLinearError: if it is a linear layer, or no `nn.Conv` pads like this.
        """
        weight, _ = self.op.kernel
        if self.flat or not self.ndim or any(low != high or low < 0 for low, high in self.pads):
            raise NotLinearError(f"it is linear, but no convolution: axes {self.ndim}, pads {self.pads}")
        return ConvSpec(
            weight.shape[1] * self.op.groups,
            weight.shape[0],
            self.op.kernel.size,
            self.op.stride,
            tuple(low for low, _ in self.pads) or 0,
            self.op.dilation,
            self.op.groups,
            padding_mode=self.padding_mode,
            ndim=self.ndim,
        )


def pointwise(scale: Tensor, shift: Tensor) -> Affine:
    """scale * x + shift, both of shape (C,) or (1,)."""
    return Affine(LinearOp(Kernel(scale[:, None], shift), (), (), len(scale)))


def the_input(like: Tensor) -> Affine:
    """The input itself."""
    return replace(pointwise(like.new_ones(1), like.new_zeros(1)), untouched=True)


def padded(pads: Pads, mode: str, like: Tensor) -> Affine:
    """The input with pixels around it."""
    return replace(the_input(like), pads=pads, padding_mode=mode)


def scaled(value: Affine, scale: Tensor, shift: Tensor) -> Affine:
    """scale * value + shift, both of shape (C,) or (1,)."""
    return after(value, pointwise(scale, shift))


def after(first: Affine, second: Affine) -> Affine:
    """`second(first(x))`, where that is a convolution of x at the borders as well.

    Raises:
        NotLinearError: if `second` pads what `first` made with something else than `first` makes of padding.
    """
    if second.is_padded:
        _check_padding(first, second)
    if first.ndim and second.ndim and (first.flat, first.ndim) != (second.flat, second.ndim):
        raise NotLinearError("a linear layer and a convolution, or convolutions of different axes, follow each other")
    pads = second.pads or first.pads
    if first.is_padded and second.is_padded:
        pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(first.pads, second.pads))
    elif first.is_padded:
        pads = first.pads
    mode = second.padding_mode if second.is_padded else first.padding_mode
    if first.untouched:
        return replace(second, pads=pads, padding_mode=mode)
    if first.ndim and not second.ndim:
        return replace(_scaled(first, second.op), pads=pads, padding_mode=mode)
    op = _then(first.settled().op, second.settled().op)
    return Affine(op, pads, mode, first.flat or second.flat)


def _scaled(value: Affine, by: LinearOp) -> Affine:
    value = replace(value, op=_spread(value.op, _outputs(by)))
    factor, shift = by.kernel.weight[:, 0], by.kernel.bias
    if len(factor) not in (1, _outputs(value.op)):
        raise NotLinearError(f"{_outputs(value.op)} channels meet {len(factor)}")
    weight, bias = value.op.kernel
    factor = factor.expand(len(weight))
    more = tuple(replace(part, scale=_both(part.scale, factor)) for part in value.more)
    op = value.op._replace(kernel=Kernel(weight, bias * factor + shift))
    return replace(value, op=op, scale=_both(value.scale, factor), more=more)


def _both(scale: Tensor | None, factor: Tensor) -> Tensor:
    return factor if scale is None else scale * factor


def _check_padding(first: Affine, second: Affine) -> None:
    """Padding commutes with a pointwise or 1x1 operation that makes of the padding what the padding is."""
    one_tap = all(k == 1 for k in first.op.kernel.size) and all(s == 1 for s in first.op.stride)
    if not one_tap or (first.is_padded and first.padding_mode != second.padding_mode):
        raise NotLinearError("a padded operation follows one with taps or padding, so that the border is another")
    crops = any(low < 0 or high < 0 for low, high in (*first.pads, *second.pads))
    if first.is_padded and (crops or second.padding_mode != "zeros"):
        raise NotLinearError("padding follows cropping, so that the border is another")
    bias = first.op.kernel.bias
    if second.padding_mode == "zeros" and any(p > 0 for pair in second.pads for p in pair) and _some(bias):
        raise NotLinearError("zeros are padded to what has a bias, so that the border is another")


def _some(bias: Tensor) -> bool:
    return not bias.is_meta and bool(bias.detach().any())


def _then(first: LinearOp, second: LinearOp) -> LinearOp:
    first, second = _spread(first, _inputs(second)), _spread(second, _outputs(first))
    if _outputs(first) != _inputs(second):
        raise NotLinearError(f"{_outputs(first)} channels meet {_inputs(second)}")
    if first.stride:
        return then(first, second)
    scale, shift = first.kernel.weight[:, 0], first.kernel.bias
    if not second.stride:
        return second._replace(kernel=kernels.affine(first.kernel, second.kernel.weight[:, 0], second.kernel.bias))
    return second._replace(kernel=kernels.affine_before(scale, shift, second.kernel, second.groups))


def _outputs(op: LinearOp) -> int:
    return op.kernel.weight.shape[0]


def _inputs(op: LinearOp) -> int:
    return op.kernel.weight.shape[1] * op.groups


def _spread(op: LinearOp, channels: int) -> LinearOp:
    """An op of one channel, which does the same to every channel, written for so many; others as they are."""
    if _inputs(op) != 1 or _outputs(op) != 1:
        return op
    kernel = Kernel(*(tensor.expand(channels, *tensor.shape[1:]) for tensor in op.kernel))
    return op._replace(kernel=kernel, groups=channels)


def add(a: Affine, b: Affine) -> Affine:
    """a + b, as one convolution.

    Raises:
        NotLinearError: if the two differ in channels, stride, size of the output or padding mode.
    """
    if not a.ndim and not b.ndim and not a.is_padded and not b.is_padded:
        (w1, b1), (w2, b2) = a.op.kernel, b.op.kernel
        return pointwise((w1 + w2)[:, 0], b1 + b2)
    a, b = _level(a, b)
    modes = {value.padding_mode for value in (a, b) if value.is_padded}
    if a.op.stride != b.op.stride or a.flat != b.flat or len(modes) > 1 or _outputs(a.op) != _outputs(b.op):
        raise NotLinearError(f"strides {a.op.stride} and {b.op.stride}, or channels, or padding modes differ")
    if _inputs(a.op) != _inputs(b.op):
        raise NotLinearError(f"inputs of {_inputs(a.op)} and {_inputs(b.op)} channels meet")
    axes = [_axis(a, b, axis) for axis in range(a.ndim)]
    size, grid, pads, start_a, start_b = (tuple(parts) for parts in zip(*axes))
    groups = gcd(a.op.groups, b.op.groups)
    op = LinearOp(Kernel(a.op.kernel.weight, a.op.kernel.bias + b.op.kernel.bias), a.op.stride, grid, groups)
    whole = Affine(op, pads, next(iter(modes), "zeros"), a.flat)
    if _covers(b, size, groups):
        a, b, start_a, start_b = b, a, start_b, start_a
    if not _covers(a, size, groups):
        shape = (_outputs(a.op), _inputs(a.op) // groups, *size)
        zeros = a.op.kernel.bias.new_zeros(shape)
        empty = replace(whole, op=op._replace(kernel=Kernel(zeros, op.kernel.bias)))
        return replace(empty, more=(_part(a, start_a, grid, groups), _part(b, start_b, grid, groups)))
    op = op._replace(kernel=Kernel(a.op.kernel.weight, op.kernel.bias))
    return replace(whole, op=op, scale=a.scale, more=(*a.more, _part(b, start_b, grid, groups)))


def _covers(value: Affine, size: tuple[int, ...], groups: int) -> bool:
    """Whether the weight of a value is as large as that of a sum, so that the other can be added into it."""
    return value.op.kernel.size == size and value.op.groups == groups


def _part(value: Affine, start: tuple[int, ...], grid: tuple[int, ...], groups: int) -> Part:
    value = value.settled() if value.more else value
    op, scale = value.op, value.scale
    depthwise = op.groups == _outputs(op) == _inputs(op) != groups
    if not depthwise and op.groups != groups:
        op, scale = op._replace(kernel=kernels.regroup(value.settled().op.kernel, op.groups, groups)), None
    steps = [d // g if k > 1 else 1 for k, d, g in zip(op.kernel.size, op.dilation, grid)]
    taps = [slice(s, s + step * (k - 1) + 1, step) for s, step, k in zip(start, steps, op.kernel.size)]
    return Part(op.kernel.weight, scale, (slice(None), slice(None), *taps), depthwise)


def _level(a: Affine, b: Affine) -> tuple[Affine, Affine]:
    """Both with the same number of axes, one of them at least, and as many channels as the other."""
    ndim = max(a.ndim, b.ndim, len(a.pads), len(b.pads))
    flat = a.flat or b.flat
    channels = max(_outputs(a.op), _outputs(b.op))

    def raised(value: Affine) -> Affine:
        op = _spread(value.op, channels)
        if not value.ndim:
            ones = (1,) * ndim
            op = LinearOp(Kernel(op.kernel.weight.reshape(-1, 1, *ones), op.kernel.bias), ones, ones, op.groups)
        return replace(value, op=op, flat=flat)

    return raised(a), raised(b)


def _axis(a: Affine, b: Affine, axis: int) -> tuple[int, int, tuple[int, int], int, int]:
    """Of the sum, along one axis: taps, their distance, the pads, and where the taps of a and of b begin."""
    first, last, spare, steps = [], [], [], []
    for value in (a, b):
        low, high = value.pads[axis] if value.pads else (0, 0)
        k, d = value.op.kernel.size[axis], value.op.dilation[axis]
        first.append(-low)
        last.append(d * (k - 1) - low)
        spare.append(low + high - d * (k - 1))
        steps.append(d if k > 1 else 0)
    if spare[0] != spare[1]:
        raise NotLinearError("the two outputs differ in size")
    grid = gcd(*steps, first[0] - first[1]) or 1
    low, high = min(first), max(last)
    starts = [(start - low) // grid for start in first]
    return (high - low) // grid + 1, grid, (-low, spare[0] + high), starts[0], starts[1]
