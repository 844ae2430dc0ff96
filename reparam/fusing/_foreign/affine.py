r"""Values of a forward as affine functions of its input: y = conv(pad(x), W, b), and the algebra on them.

A value that treats every pixel and channel on its own, y[c] = W[c] x[c] + b[c], is kept as a *pointwise* op without
axes, W of shape (C, 1). C = 1 says that all channels are treated alike: the input itself is W = [[1]], b = [0].

Weights are large, and what happens to them most is that norms scale their rows and that sums are taken. Both are put
off until somebody needs the weight, and then done for a few rows at a time, which is several times as fast as writing
every step out in float64: a weight may be of the model's dtype, the scale of float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...algebra import _kernels as kernels
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp, then
from ...algebra._spec import ConvSpec, Pads
from ...errors import NotLinearError
from .addends import Addend, product

_FEW = 2**17
"""Numbers that are worked on at a time; they should stay in the cache of a processor."""


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
    more: tuple[Addend, ...] = ()
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
        total = product(weight[first:last], scale, torch.promote_types(weight.dtype, bias.dtype))
        if self.more and total.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
            total = total.clone()
        for one in self.more:
            one.add_into(total, first)
        return total

    def settled(self) -> Affine:
        """The same value with all of its weight worked out, in the precision of the bias at least."""
        weight, bias = self.op.kernel
        if self.scale is None and not self.more and weight.dtype == torch.promote_types(weight.dtype, bias.dtype):
            return self
        kernel = Kernel(self.rows(0, outputs(self.op)), self.op.kernel.bias)
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
    value = replace(value, op=repeated(value.op, outputs(by)))
    factor, shift = by.kernel.weight[:, 0], by.kernel.bias
    if len(factor) not in (1, outputs(value.op)):
        raise NotLinearError(f"{outputs(value.op)} channels meet {len(factor)}")
    weight, bias = value.op.kernel
    factor = factor.expand(len(weight))
    more = tuple(replace(one, scale=_both(one.scale, factor)) for one in value.more)
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
    zeros = second.padding_mode == "zeros" and any(p > 0 for pair in second.pads for p in pair)
    if zeros and not bias.is_meta and bias.detach().any():
        raise NotLinearError("zeros are padded to what has a bias, so that the border is another")


def _then(first: LinearOp, second: LinearOp) -> LinearOp:
    dtype = torch.promote_types(first.kernel.weight.dtype, second.kernel.weight.dtype)
    first, second = _of_dtype(first, dtype), _of_dtype(second, dtype)
    first, second = repeated(first, inputs(second)), repeated(second, outputs(first))
    if outputs(first) != inputs(second):
        raise NotLinearError(f"{outputs(first)} channels meet {inputs(second)}")
    if first.stride:
        return then(first, second)
    scale, shift = first.kernel.weight[:, 0], first.kernel.bias
    if not second.stride:
        return second._replace(kernel=kernels.affine(first.kernel, second.kernel.weight[:, 0], second.kernel.bias))
    return second._replace(kernel=kernels.affine_before(scale, shift, second.kernel, second.groups))


def _of_dtype(op: LinearOp, dtype: torch.dtype) -> LinearOp:
    return op._replace(kernel=Kernel(*(tensor.to(dtype) for tensor in op.kernel)))


def outputs(op: LinearOp) -> int:
    return op.kernel.weight.shape[0]


def inputs(op: LinearOp) -> int:
    return op.kernel.weight.shape[1] * op.groups


def repeated(op: LinearOp, channels: int) -> LinearOp:
    """An op of one channel, which does the same to every channel, written for so many; others as they are."""
    if inputs(op) != 1 or outputs(op) != 1:
        return op
    kernel = Kernel(*(tensor.expand(channels, *tensor.shape[1:]) for tensor in op.kernel))
    return op._replace(kernel=kernel, groups=channels)
