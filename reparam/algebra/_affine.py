r"""Linear maps of padded images: composition, sums, and selection and concatenation of channels.

Each result is exact, borders included, or the operation is refused: y = conv(pad(x), W, b) pads once, before all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NotLinearError
from . import _kernels as kernels
from ._borders import check_borders
from ._composition import then
from ._kernels import Kernel
from ._linear import LinearOp
from ._spec import Pads


def pointwise(scale: Tensor, shift: Tensor | None = None) -> LinearOp:
    """scale * x + shift, both of shape (C,) or (1,)."""
    kernel = Kernel(scale[:, None], torch.zeros_like(scale) if shift is None else shift)
    return LinearOp(kernel, (), (), len(scale), shifts=shift is not None)


def the_input(like: Tensor, channels: int = 1) -> LinearOp:
    """The input itself; with one channel if their number is unknown."""
    return pointwise(like.new_ones(channels))._replace(untouched=True)


def padded(pads: Pads, mode: str, like: Tensor) -> LinearOp:
    """The input with padding around it."""
    return the_input(like)._replace(pads=pads, padding_mode=mode)


def scaled(value: LinearOp, scale: Tensor, shift: Tensor | None = None) -> LinearOp:
    """scale * value + shift, both of shape (C,) or (1,)."""
    return after(value, pointwise(scale, shift))


def after(first: LinearOp, second: LinearOp) -> LinearOp:
    """Compose two operations: `second(first(x))`, if that is one convolution of x, borders included.

    The kernel of `second` is moved to the dtype and device of `first`, which may be the meta device.

    Raises:
        NotLinearError: if `second` pads with other values than `first` computes from padding, or takes another number
            of channels or axes.
    """
    second = _like(second, first)
    if second.is_padded:
        check_borders(first, second)
        if first.tiles:
            pads = tuple((low * s, high * s) for (low, high), s in zip(second.pads, first.stride))
            second = second._replace(pads=pads)
    if first.flat and second.flat and first.ndim > second.ndim == 1:  # a linear layer on an input with several axes
        second = _with_axes(second, first.ndim)
    if first.ndim and second.ndim and (first.flat, first.ndim) != (second.flat, second.ndim):
        raise NotLinearError("a linear layer is combined with a convolution, or their numbers of axes differ")
    pads = second.pads or first.pads
    if first.is_padded and second.is_padded:
        pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(first.pads, second.pads))
    elif first.is_padded:
        pads = first.pads
    mode = second.padding_mode if second.is_padded else first.padding_mode
    if first.untouched:
        return repeated(second, first.outputs)._replace(pads=pads, padding_mode=mode)
    if second.untouched:
        return first._replace(pads=pads, padding_mode=mode)
    op = _then(first._replace(reads=None), second)
    flat, shifts = first.flat or second.flat, first.shifts or second.shifts
    return LinearOp(*op[:4], pads, mode, flat, first.turned, first.reads, shifts)


def _with_axes(value: LinearOp, ndim: int) -> LinearOp:
    """A value that reads one pixel, written with `ndim` axes."""
    ones = (1,) * ndim
    weight = value.kernel.weight
    kernel = Kernel(weight.reshape(*weight.shape[:2], *ones), value.kernel.bias)
    return value._replace(kernel=kernel, stride=ones, dilation=ones)


def turned(value: LinearOp, ndim: int, flat: bool) -> LinearOp:
    """A value of `ndim` spatial axes after its channels moved to the last axis (`flat`), or back from there.

    Raises:
        NotLinearError: if they are there already.
    """
    if value.ndim and (value.flat == flat or value.ndim != ndim):
        raise NotLinearError("axes are permuted in another way than between channels-first and channels-last")
    return _raised(value, ndim)._replace(flat=flat, turned=not value.turned, untouched=False)


def unshuffled(value: LinearOp, factor: int) -> LinearOp:
    r"""A value after PixelUnshuffle, which moves pixels into channels: a strided convolution with one tap per output.

    $$y[c r^2 + i r + j,\; p, q] = x[c,\; p r + i, q r + j]$$
    """
    channels, taps = value.outputs, factor * factor
    like = value.kernel.weight
    one = torch.eye(taps, dtype=like.dtype, device=like.device).reshape(taps, 1, factor, factor)
    kernel = Kernel(one.repeat(channels, 1, 1, 1), like.new_zeros(channels * taps))
    tiles = not value.is_padded and all(s == 1 for s in value.stride)
    return after(value, LinearOp(kernel, (factor, factor), (1, 1), channels, shifts=False))._replace(tiles=tiles)


def _like(value: LinearOp, other: LinearOp) -> LinearOp:
    """`value` in the dtype and on the device of `other`."""
    weight = other.kernel.weight
    return value._replace(kernel=Kernel(*(tensor.to(weight.device, weight.dtype) for tensor in value.kernel)))


def _then(first: LinearOp, second: LinearOp) -> LinearOp:
    first, second = repeated(first, second.inputs), repeated(second, first.outputs)
    if first.outputs != second.inputs:
        raise NotLinearError(f"{first.outputs} channels reach an operation that takes {second.inputs}")
    if first.ndim and second.ndim:
        return then(first, second)
    if second.ndim:
        scale, shift = first.kernel.weight[:, 0], first.kernel.bias
        return second._replace(kernel=kernels.affine_before(scale, shift, second.kernel, second.groups))
    return first._replace(kernel=kernels.affine(first.kernel, second.kernel.weight[:, 0], second.kernel.bias))


def repeated(op: LinearOp, channels: int) -> LinearOp:
    """An operation of one channel written out for `channels` channels; any other is returned unchanged."""
    if op.inputs != 1 or op.outputs != 1:
        return op
    kernel = Kernel(*(tensor.expand(channels, *tensor.shape[1:]) for tensor in op.kernel))
    return op._replace(kernel=kernel, groups=channels)


def add(*values: LinearOp) -> LinearOp:
    """Add values of the same input, as one convolution.

    Raises:
        NotLinearError: if they differ in channels, stride, output size or padding mode.
    """
    channels = max(value.outputs for value in values)
    level, frames, mode = _level([repeated(value, channels) for value in values])
    if len({value.outputs for value in level}) > 1:
        raise NotLinearError(f"the terms of a sum have {' and '.join(str(value.outputs) for value in level)} channels")
    return _in_frames(_summed(_of_one_input(level), frames), frames, mode)


def _summed(values: Sequence[LinearOp], frames: Sequence[Frame]) -> LinearOp:
    """The sum. Each value is added to its own taps only; a depthwise one, to its diagonal only."""
    groups = gcd(*(value.groups for value in values))
    size = tuple((last - first) // grid + 1 for first, last, _, grid in frames)
    whole = [value for value in values if value.groups == groups and value.kernel.size == size]
    like = values[0].kernel.weight
    total = (
        whole[0].kernel.weight.clone()
        if whole
        else like.new_zeros(values[0].outputs, _read(values[0]) // groups, *size)
    )
    for value in values:
        if not whole or value is not whole[0]:
            _add_into(total, value, groups, frames)
    bias = reduce(torch.add, (value.kernel.bias for value in values))
    shifts = any(value.shifts for value in values)
    return values[0]._replace(kernel=Kernel(total, bias), groups=groups, shifts=shifts, untouched=False, tiles=False)


def _add_into(total: Tensor, value: LinearOp, groups: int, frames: Sequence[Frame]) -> None:
    taps: list[slice] = [slice(None), slice(None)]
    for axis, (first, _, _, grid) in enumerate(frames):
        begin, end, _, step = _extent(value, axis)
        taps.append(slice((begin - first) // grid, (end - first) // grid + 1, step // grid or 1))
    place = total[tuple(taps)]
    if value.groups != groups and value.groups == value.outputs == _read(value):  # one filter per channel
        row = torch.arange(value.outputs, device=place.device)
        place[row, row % place.shape[1]] += value.kernel.weight[:, 0]
    else:
        place += kernels.regroup(value.kernel, value.groups, groups).weight


def _read(value: LinearOp) -> int:
    """The number of channels that are read."""
    return value.kernel.weight.shape[1] * value.groups


def concat(values: Sequence[LinearOp]) -> LinearOp:
    """Concatenate the channels of values of the same input, as one convolution.

    Raises:
        NotLinearError: if they differ in stride, output size or padding mode, or if channels are unknown.
    """
    inputs = max(value.inputs for value in values)
    level, frames, mode = _level([repeated(value, inputs) for value in values])
    values = [_placed(value, frames, mode) for value in level]
    first = values[0]
    ends = [value.reads[0] + value.groups * value.kernel.weight.shape[1] for value in values if value.reads]
    follow = len(ends) == len(values) and all(
        value.reads and value.reads[0] == end for value, end in zip(values[1:], ends)
    )
    shapes = {(value.outputs // value.groups, *value.kernel.weight.shape[1:]) for value in values}
    if follow and len(shapes) == 1:  # each group reads its own channels
        kernel = Kernel(*(torch.cat(tensors) for tensors in zip(*(value.kernel for value in values))))
        whole = first._replace(kernel=kernel, groups=sum(value.groups for value in values), untouched=False)
        return _read_all(whole)._replace(shifts=any(value.shifts for value in values))
    _check_axes(first)
    total = sum(value.outputs for value in values)
    before, parts = 0, []
    for value in _of_one_input(values):
        weight, bias = kernels.regroup(value.kernel, value.groups, 1)
        after_it = total - before - len(bias)
        rows = Kernel(_rows(weight, before, after_it), F.pad(bias, (before, after_it)))
        parts.append(value._replace(kernel=rows, groups=1))
        before += value.outputs
    return _summed(parts, [_frame([_extent(parts[0], axis)]) for axis in range(first.ndim)])


def _rows(weight: Tensor, before: int, after_it: int) -> Tensor:
    return F.pad(weight, (0, 0) * (weight.dim() - 1) + (before, after_it))


def select(value: LinearOp, start: int, stop: int) -> LinearOp:
    """Select the channels start, ..., stop - 1 of a value.

    Raises:
        NotLinearError: if it has fewer. A value with an unknown number of channels counts as having one.
    """
    if not 0 <= start < stop <= value.outputs:
        raise NotLinearError(f"channels {start} to {stop} are selected from {value.outputs}")
    kernel = Kernel(*(tensor[start:stop] for tensor in value.kernel))
    each, inputs = value.outputs // value.groups, value.kernel.weight.shape[1]
    offset, total = value.reads or (0, value.inputs)
    first, last = start // each, (stop - 1) // each
    if first != last and (start % each or stop % each):  # parts of groups
        return select(value._replace(kernel=kernels.regroup(value.kernel, value.groups, 1), groups=1), start, stop)
    reads = (offset + first * inputs, total)
    return _read_all(value._replace(kernel=kernel, groups=last - first + 1, reads=reads, untouched=False))


def _read_all(value: LinearOp) -> LinearOp:
    """Drop `reads` if it says that all channels are read."""
    read = value.kernel.weight.shape[1] * value.groups
    return value._replace(reads=None) if value.reads == (0, read) else value


def _of_one_input(values: Sequence[LinearOp]) -> list[LinearOp]:
    """Make all values read the same channels, with zeros for those that they did not read.

    Raises:
        NotLinearError: if their inputs differ in channels.
    """
    if len({value.inputs for value in values}) > 1:
        counts = " and ".join(str(value.inputs) for value in values)
        raise NotLinearError(f"values are combined whose inputs have {counts} channels")
    if len({value.reads for value in values}) == 1:
        return list(values)
    return [_widened(value) for value in values]


def _check_axes(value: LinearOp) -> None:
    """Refuse a pointwise value: with one scale per channel, it cannot reorder channels."""
    if not value.ndim:
        raise NotLinearError("channels are reordered in a value whose number of axes is unknown")


def _widened(value: LinearOp) -> LinearOp:
    _check_axes(value)
    if not value.reads:
        return value
    start, total = value.reads
    weight, bias = kernels.regroup(value.kernel, value.groups, 1)
    columns = (0, 0) * (weight.dim() - 2) + (start, total - start - weight.shape[1])
    return value._replace(kernel=Kernel(F.pad(weight, columns), bias), groups=1, reads=None)


def _level(values: Sequence[LinearOp]) -> tuple[list[LinearOp], list[Frame], str]:
    """Values with the same number of axes, a frame per axis that holds the taps of all, and the padding mode.

    Raises:
        NotLinearError: if they differ in stride, output size or padding mode.
    """
    values = [_like(value, values[0]) for value in values]
    ndim = max(max(value.ndim, len(value.pads)) for value in values)
    flat = any(value.flat for value in values)
    if len({value.turned for value in values}) > 1 or len({value.flat for value in values if value.ndim}) > 1:
        raise NotLinearError("values are combined whose channels are on different axes")
    values = [_raised(value, ndim)._replace(flat=flat) for value in values]
    modes = {value.padding_mode for value in values if value.is_padded}
    strides = {value.stride for value in values}
    if len(strides) > 1 or len(modes) > 1:
        named = " and ".join(str(value.stride) for value in values)
        raise NotLinearError(f"strides {named}, or axes, or padding modes differ")
    frames = [_frame([_extent(value, axis) for value in values]) for axis in range(ndim)]
    return values, frames, next(iter(modes), "zeros")


def _raised(value: LinearOp, ndim: int) -> LinearOp:
    """A pointwise value as a convolution with one tap on `ndim` axes."""
    return value if value.ndim or not ndim else _with_axes(value, ndim)


Extent = tuple[int, int, int, int]
"""Of one value along an axis: first and last tap (in pixels from the output position), spare padding, tap distance."""
Frame = tuple[int, int, int, int]
"""Of several values along an axis: first and last tap, spare padding, tap distance."""


def _extent(value: LinearOp, axis: int) -> Extent:
    low, high = value.pads[axis] if value.pads else (0, 0)
    k, d = value.kernel.size[axis], value.dilation[axis]
    return -low, d * (k - 1) - low, low + high - d * (k - 1), d if k > 1 else 0


def _frame(extents: Sequence[Extent]) -> Frame:
    """The smallest set of taps along one axis that contains the taps of all values.

    Taps are counted from the output position: `a` with 3 taps at dilation 2 and 2 pads begins at -2, and `b` with 3
    taps and 1 pad at -1. The padding that the taps leave spare decides the output size, and must be the same for all.

        pixel     -2 -1  0  1  2
        a          a  .  a  .  a     begins at tap 0
        b          .  b  b  b  .     begins at tap 1
        a + b      5 taps at dilation gcd(2, 1, -2 - -1) = 1, 2 pads
    """
    firsts, lasts, spares, steps = zip(*extents)
    if len(set(spares)) > 1:
        raise NotLinearError("the two outputs differ in size")
    grid = gcd(*steps, *(first - firsts[0] for first in firsts)) or 1
    return min(firsts), max(lasts), spares[0], grid


def _placed(value: LinearOp, frames: Sequence[Frame], mode: str) -> LinearOp:
    """A value written with the taps of `frames`."""
    around: list[int] = []
    steps = []
    for axis, (first, last, _, grid) in enumerate(frames):
        begin, end, _, step = _extent(value, axis)
        around = [(begin - first) // grid, (last - end) // grid, *around]
        steps.append(step // grid or 1)
    kernel = kernels.dilate(value.kernel, tuple(steps))
    if any(around):
        kernel = Kernel(F.pad(kernel.weight, around), kernel.bias)
    return _in_frames(value._replace(kernel=kernel), frames, mode)


def _in_frames(value: LinearOp, frames: Sequence[Frame], mode: str) -> LinearOp:
    """A value with the geometry of `frames`; its kernel has their taps already."""
    pads = tuple((-first, spare + last) for first, last, spare, _ in frames)
    pads = pads if any(map(any, pads)) else ()
    grid = tuple(frame[3] for frame in frames)
    return value._replace(dilation=grid, pads=pads, padding_mode=mode if pads else "zeros")


def balanced(value: LinearOp) -> LinearOp:
    """Make zero padding symmetric by adding taps of zero; any other value is returned unchanged."""
    if value.padding_mode != "zeros" or not any(low != high for low, high in value.pads):
        return value
    extents = [_extent(value, axis) for axis in range(value.ndim)]
    frames = []
    for (low, high), extent in zip(value.pads, extents):
        first, last, spare, step = extent
        grid = gcd(step, high - low) or 1
        frames.append((min(first, -high), max(last, last + low - high), spare, grid))
    return _placed(value, frames, value.padding_mode)
