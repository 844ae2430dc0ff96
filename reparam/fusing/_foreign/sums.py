"""The sum of two affine values as one."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from ...algebra import _kernels as kernels
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp
from ...errors import NotLinearError
from .addends import Addend
from .affine import Affine, inputs, outputs, pointwise, repeated


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
    if a.op.stride != b.op.stride or a.flat != b.flat or len(modes) > 1 or outputs(a.op) != outputs(b.op):
        raise NotLinearError(f"strides {a.op.stride} and {b.op.stride}, or channels, or padding modes differ")
    if inputs(a.op) != inputs(b.op):
        raise NotLinearError(f"inputs of {inputs(a.op)} and {inputs(b.op)} channels meet")
    # A value that has all taps and groups of the sum takes the other one in; else both go into zeros.
    axes = [_axis(a, b, axis) for axis in range(a.ndim)]
    size, grid, pads, start_a, start_b = (tuple(parts) for parts in zip(*axes))
    groups = gcd(a.op.groups, b.op.groups)
    op = LinearOp(Kernel(a.op.kernel.weight, a.op.kernel.bias + b.op.kernel.bias), a.op.stride, grid, groups)
    whole = Affine(op, pads, next(iter(modes), "zeros"), a.flat)
    if _covers(b, size, groups):
        a, b, start_a, start_b = b, a, start_b, start_a
    if not _covers(a, size, groups):
        shape = (outputs(a.op), inputs(a.op) // groups, *size)
        zeros = op.kernel.bias.new_zeros(shape)
        empty = replace(whole, op=op._replace(kernel=Kernel(zeros, op.kernel.bias)))
        return replace(empty, more=(_addend(a, start_a, grid, groups), _addend(b, start_b, grid, groups)))
    op = op._replace(kernel=Kernel(a.op.kernel.weight, op.kernel.bias))
    return replace(whole, op=op, scale=a.scale, more=(*a.more, _addend(b, start_b, grid, groups)))


def _covers(value: Affine, size: tuple[int, ...], groups: int) -> bool:
    """Whether the weight of a value is as large as that of a sum, so that the other can be added into it."""
    return value.op.kernel.size == size and value.op.groups == groups


def _addend(value: Affine, start: tuple[int, ...], grid: tuple[int, ...], groups: int) -> Addend:
    value = value.settled() if value.more else value
    op, scale = value.op, value.scale
    depthwise = op.groups == outputs(op) == inputs(op) != groups
    if not depthwise and op.groups != groups:
        op, scale = op._replace(kernel=kernels.regroup(value.settled().op.kernel, op.groups, groups)), None
    steps = [d // g if k > 1 else 1 for k, d, g in zip(op.kernel.size, op.dilation, grid)]
    taps = [slice(s, s + step * (k - 1) + 1, step) for s, step, k in zip(start, steps, op.kernel.size)]
    return Addend(op.kernel.weight, scale, (slice(None), slice(None), *taps), depthwise)


def _level(a: Affine, b: Affine) -> tuple[Affine, Affine]:
    """Both with the same number of axes, one of them at least, and as many channels as the other."""
    ndim = max(a.ndim, b.ndim, len(a.pads), len(b.pads))
    flat = a.flat or b.flat
    channels = max(outputs(a.op), outputs(b.op))

    def raised(value: Affine) -> Affine:
        op = repeated(value.op, channels)
        if not value.ndim:
            ones = (1,) * ndim
            op = LinearOp(Kernel(op.kernel.weight.reshape(-1, 1, *ones), op.kernel.bias), ones, ones, op.groups)
        return replace(value, op=op, flat=flat)

    return raised(a), raised(b)


def _axis(a: Affine, b: Affine, axis: int) -> tuple[int, int, tuple[int, int], int, int]:
    """Of the sum, along one axis: taps, their distance, the pads, and where the taps of a and of b begin.

    Taps are counted from the pixel under an output, so that `a` with 3 taps at dilation 2 and 2 pads begins at -2, and
    `b` with 3 taps and 1 pad at -1. The pads that taps leave spare decide the size of the output, and must be the same.

        pixel     -2 -1  0  1  2
        a          a  .  a  .  a     begins at tap 0
        b          .  b  b  b  .     begins at tap 1
        a + b      5 taps at dilation gcd(2, 1, -2 - -1) = 1, 2 pads
    """
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
