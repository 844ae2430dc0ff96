"""Operations of ONNX that split, slice, concatenate and reorder channels and images, as linear maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ...algebra._affine import after, concat, select, turned
from ...algebra._linear import LinearOp, conv_op
from ...errors import NotLinearError
from .call import Call, Read, agree, on, side, side_of, with_axes
from .graph import Dims
from .layers import around, as_it_is, reads

_WHOLE = 2**31 - 1
"""The end of an axis of any length, as exporters write it; some write more."""


@reads("Concat")
def _concat(call: Call) -> Read:
    names, dims = tuple(call.node.input), [call.dims(index) for index in range(len(call.node.input))]
    if any(name in call.graph.constants for name in names):
        raise NotLinearError("Concat joins a constant and a value")
    if len(names) == 1:
        return names, as_it_is
    rank, axis, where = _channel_axis(call, call.given["axis"], dims[0])

    def apply(*values: LinearOp) -> LinearOp:
        agree({side(value, rank) for value in values})
        own = [on(value, where, one[axis] if one else None, rank) for value, one in zip(values, dims)]
        return concat([with_axes(value, rank) for value in own])

    return names, apply


def _channel_axis(call: Call, axis: int, dims: Dims | None) -> tuple[int, int, str | None]:
    """The rank of a value, the axis, and the side of that axis.

    Raises:
        NotLinearError: if it is not an axis of channels.
    """
    if dims is None:
        raise NotLinearError(f"{call.node.op_type} has an input of unknown shape")
    return len(dims), axis % len(dims), side_of(axis, len(dims))


def parts_of(call: Call) -> Iterator[tuple[str, Read]]:
    """The outputs of a `Split`, each with its reading."""
    dims, outputs = call.dims(0), len(call.node.output)
    rank, axis, where = _channel_axis(call, call.given.get("axis", 0), dims)
    whole = dims[axis] if dims else None
    if whole is None:
        raise NotLinearError("Split has an input with an unknown number of channels")
    lengths = call.integers("split", 1) or _even(whole, call.given.get("num_outputs", outputs))
    start = 0
    for name, length in zip(call.node.output, lengths):
        yield name, ((call.name(0),), _part(start, start + length, where, whole, rank))
        start += length


def _even(whole: int, count: int) -> tuple[int, ...]:
    each = -(-whole // count)
    return tuple(min(each, whole - index * each) for index in range(count))


def _part(start: int, stop: int, where: str | None, channels: int | None, rank: int) -> Callable[..., LinearOp]:
    return lambda x: select(on(x, where, channels, rank), start, stop)


@reads("SequenceAt")
def _at(call: Call) -> Read:
    """`chunk` and `split`, as unoptimized graphs of torch's newer exporter have them."""
    maker = call.graph.makers.get(call.name(0))
    if maker is None or maker.op_type != "SplitToSequence":
        raise NotLinearError("SequenceAt reads something that is not a split value")
    split = Call(call.graph, maker)
    rank, axis, where = _channel_axis(call, split.given.get("axis", 0), split.dims(0))
    whole = (split.dims(0) or ())[axis]
    if whole is None or not split.name(1) or not split.given.get("keepdims", 1):
        raise NotLinearError("a value with an unknown number of channels is split")
    lengths = split.numbers(1)
    each = [int(lengths)] * -(-whole // int(lengths)) if lengths.ndim == 0 else [int(one) for one in lengths]
    ends = np.minimum(np.cumsum([0, *each]), whole)
    place = range(len(each))[int(call.numbers(1))]
    return (split.name(0),), _part(int(ends[place]), int(ends[place + 1]), where, whole, rank)


@reads("Slice")
def _slice(call: Call) -> Read:
    dims = call.dims(0)
    if dims is None:
        raise NotLinearError("Slice has an input of unknown shape")
    starts, ends = call.numbers(1).tolist(), call.numbers(2).tolist()
    axes = call.integers("axes", 3) or range(len(starts))
    steps = call.integers("steps", 4) or (1,) * len(starts)
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps):
        cut = (*_ends(start, end, dims[axis]), step)
        if cut != (0, 0, 1):
            cuts[axis % len(dims)] = cut
    if 0 in cuts or any(step < 1 for _, _, step in cuts.values()):
        raise NotLinearError("Slice selects images of a batch, or reverses an axis")
    return (call.name(0),), lambda x: _cut(x, cuts, dims)


def _ends(start: int, end: int, length: int | None) -> tuple[int, int]:
    """How much is cut off before, and (as a negative number) after."""
    if length is not None:
        start, end, _ = slice(start, end).indices(length)
        return start, min(end - length, 0)
    if start < 0 or 0 <= end < _WHOLE:
        raise NotLinearError(f"the slice from {start} to {end} depends on the size of the image")
    return start, min(end, 0)


def _cut(x: LinearOp, cuts: dict[int, tuple[int, int, int]], dims: Dims) -> LinearOp:
    """Parts of channels and images. `cuts` has, by axis, what is cut off before and after, and the step."""
    rank = len(dims)
    own = rank - 1 if x.flat else 1
    if x.flat and any(axis != own for axis in cuts):
        raise NotLinearError("Slice selects tokens of a sequence")
    if own in cuts:
        start, end, step = cuts[own]
        whole = dims[own]
        if whole is None or step != 1:
            raise NotLinearError("Slice selects channels of an unknown number, or with a step")
        x = select(on(x, side_of(own, rank), whole, rank), start, whole + end)
    pads = tuple((-cuts.get(axis, (0, 0, 1))[0], cuts.get(axis, (0, 0, 1))[1]) for axis in range(2, rank))
    every = tuple(cuts.get(axis, (0, 0, 1))[2] for axis in range(2, rank))
    if x.flat:
        return x
    x = around(x, pads, "zeros")
    return x if set(every) <= {1} else after(x, conv_op(x.kernel.bias.new_ones(1, 1, *(1 for _ in every)), None, every))


@reads("Transpose")
def _transpose(call: Call) -> Read:
    """Move channels to the last axis, where linear layers need them, or back."""
    dims = call.dims(0)
    rank = len(dims or ())
    axes = tuple(call.given.get("perm", range(rank)[::-1]))
    if axes == tuple(range(rank)):
        return (call.name(0),), as_it_is
    last, first = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    if rank < 3 or axes not in (last, first):
        raise NotLinearError(f"Transpose orders the axes as {axes}")
    # With three axes both orders are the same: values of tokens move to the first axis, all others to the last.
    return (call.name(0),), lambda x: turned(x, rank - 2, not x.flat if last == first else axes == last)


@reads("Gather")
def _gather(call: Call) -> Read:
    """Reorder channels."""
    index = call.numbers(1)
    dims = call.dims(0)
    rank, axis, where = _channel_axis(call, call.given.get("axis", 0), dims)
    whole = (dims or ())[axis]
    if index.ndim != 1 or whole is None:
        raise NotLinearError("Gather selects a single channel, or channels of an unknown number")
    index = index % whole
    ends = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    runs = [(int(index[a]), int(index[b - 1]) + 1) for a, b in pairwise(ends)]

    def apply(x: LinearOp) -> LinearOp:
        x = with_axes(on(x, where, whole, rank), rank)
        parts = [select(x, *run) for run in runs]
        return concat(parts) if len(parts) > 1 else parts[0]

    return (call.name(0),), apply
