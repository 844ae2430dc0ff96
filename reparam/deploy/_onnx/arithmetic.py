"""Sums, differences, products and quotients of ONNX as linear maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from onnx import NodeProto, numpy_helper
from torch import Tensor

from ...algebra._affine import add, scaled
from ...algebra._linear import LinearOp
from ...errors import NotLinearError
from .call import Call, Read, agree, as_tensor, on, side, side_of
from .graph import Dims, Graph, attributes
from .layers import as_it_is, reads, same_shape


class _Numbers(NamedTuple):
    """Constants for the channels of a value."""

    where: str | None
    """The side on which the channels are; see `side`."""
    channels: int | None
    """The number of channels, if known."""
    each: Tensor
    """One constant per channel, or one for all."""


@reads("Add", "Sum", "Mean")
def _sum(call: Call) -> Read:
    names = [name for name in call.node.input if name]
    moving = [index for index, name in enumerate(names) if name not in call.graph.constants]
    _check_sizes([call.dims(index) for index in moving])
    shifts = [_channel_numbers(call, index, moving[0]) for index in range(len(names)) if index not in moving]
    share = 1 / len(names) if call.node.op_type == "Mean" else 1.0
    rank = _rank(call, moving)

    def apply(*values: LinearOp) -> LinearOp:
        value = _added(values, rank)
        value = reduce(lambda value, shift: _mapped(value, None, shift, rank), shifts, value)
        return value if share == 1 else _times(value, share)

    return tuple(names[index] for index in moving), apply


@reads("Sub")
def _difference(call: Call) -> Read:
    if call.is_constant(1):
        less = _channel_numbers(call, 1, 0)
        less = less._replace(each=-less.each)
        return (call.name(0),), lambda x: _mapped(x, None, less, _rank(call, [0]))
    if call.is_constant(0):
        shift = _channel_numbers(call, 0, 1)
        return (call.name(1),), lambda x: _mapped(_times(x, -1), None, shift, _rank(call, [1]))
    _check_sizes([call.dims(0), call.dims(1)])
    return (call.name(0), call.name(1)), lambda a, b: _added((a, _times(b, -1)), _rank(call, [0, 1]))


@reads("Mul")
def _product(call: Call) -> Read:
    constant, moving = (1, 0) if call.is_constant(1) else (0, 1)
    factor = _channel_numbers(call, constant, moving)
    return (call.name(moving),), lambda x: _mapped(x, factor, None, _rank(call, [moving]))


@reads("Div")
def _quotient(call: Call) -> Read:
    divisor = _channel_numbers(call, 1, 0)
    factor = divisor._replace(each=1 / divisor.each)
    return (call.name(0),), lambda x: _mapped(x, factor, None, _rank(call, [0]))


@reads("Neg")
def _negative(call: Call) -> Read:
    return (call.name(0),), lambda x: _times(x, -1)


@reads("Where")
def _chosen(call: Call) -> Read:
    condition = call.numbers(0)
    chosen = 1 if condition.all() else 2
    if condition.size != 1 or condition.ndim > len(call.dims(chosen) or ()):
        raise NotLinearError("Where combines parts of two values")
    _check_sizes([call.dims(1), call.dims(2)])
    return (call.name(chosen),), as_it_is


@reads("Expand")
def _expanded(call: Call) -> Read:
    if call.is_constant(0):
        return _filled(call, call.name(1), call.numbers(0))
    return same_shape(call)


@reads("ConstantOfShape")
def _constant_of_shape(call: Call) -> Read:
    given = call.given.get("value")
    return _filled(call, call.name(0), np.zeros(1) if given is None else numpy_helper.to_array(given))


def _filled(call: Call, shape: str, numbers: np.ndarray) -> Read:
    """A constant in the shape of a value, as that value times zero plus the constant."""
    maker = call.graph.makers.get(shape)
    if maker is None or maker.op_type != "Shape" or any(attributes(maker).values()) or numbers.size != 1:
        raise NotLinearError(f"{call.node.op_type} has a shape that is not known")
    zero, fill = torch.zeros(1), as_tensor(numbers).reshape(1)
    return (maker.input[0],), lambda x: scaled(x, zero, fill if fill.any() else None)


def _channel_numbers(call: Call, index: int, of: int) -> _Numbers:
    """A constant input as one number per channel of another input.

    Raises:
        NotLinearError: if the constant has another shape.
    """
    numbers, dims = call.numbers(index).astype(np.float64), call.dims(of)
    rank = 1 if dims is None else len(dims)
    if numbers.ndim <= rank:
        numbers = numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape)
        for axis in range(rank):  # an axis along which nothing changes is reduced to one entry, unless it broadcasts
            first = numbers.take([0], axis)
            if axis != 1 and numbers.shape[axis] == (dims or (1,))[axis] and (numbers == first).all():
                numbers = first
        axes = [axis for axis in range(rank) if numbers.shape[axis] != 1]
        if not axes:
            return _Numbers(None, None, torch.from_numpy(numbers.reshape(1)))
        if dims is not None and len(axes) == 1 and dims[axes[0]] in (None, numbers.size):
            return _Numbers(side_of(axes[0], rank), dims[axes[0]], torch.from_numpy(numbers.ravel()))
    raise NotLinearError(f"a constant of shape {numbers.shape} is not one number per channel of {dims}")


def _mapped(x: LinearOp, factor: _Numbers | None, shift: _Numbers | None, rank: int | None) -> LinearOp:
    """factor * x + shift."""
    for where, channels, each in filter(None, (factor, shift)):
        if len(each) > 1:
            x = on(x, where, channels, rank)
            if x.outputs != len(each):
                raise NotLinearError(f"{len(each)} constants do not fit {x.outputs} channels")
    scale = torch.ones(1) if factor is None else factor.each
    return scaled(x, scale, shift.each if shift is not None and shift.each.any() else None)


def _times(x: LinearOp, number: float) -> LinearOp:
    return scaled(x, torch.tensor([number], dtype=torch.float64))


def _added(values: Sequence[LinearOp], rank: int | None) -> LinearOp:
    agree({side(value, rank) for value in values})
    return add(*values) if len(values) > 1 else values[0]


def _rank(call: Call, inputs: Iterable[int]) -> int | None:
    known = [dims for index in inputs if (dims := call.dims(index)) is not None]
    return len(known[0]) if known else None


def _check_sizes(of: Sequence[Dims | None]) -> None:
    """Refuse values of which one broadcasts to the size of another.

    Raises:
        NotLinearError: if one does.
    """
    known = [dims for dims in of if dims is not None]
    if len({len(dims) for dims in known}) > 1:
        raise NotLinearError(f"values of {known} are combined, so one of them broadcasts")
    for sizes in zip(*known):
        if len({size for size in sizes if size is not None}) > 1 or (1 in sizes and None in sizes):
            raise NotLinearError(f"values of {known} are combined, so one of them broadcasts")


@reads("ReduceSum", "ReduceMean")
def _sum_of_stack(call: Call) -> Read:
    """`torch.stack(values).sum(0)`."""
    axes = call.integers("axes", 1)
    if axes is None or len(axes) != 1 or call.given.get("keepdims", 1):
        raise NotLinearError(f"{call.node.op_type} sums over positions or channels")
    names = _stacked(call.graph, call.name(0), axes[0])
    dims = [call.graph.dims(name) for name in names]
    _check_sizes(dims)
    share = 1 / len(names) if call.node.op_type == "ReduceMean" else 1.0
    rank = next((len(one) for one in dims if one is not None), None)
    return tuple(names), lambda *values: _times(_added(values, rank), share)


def _stacked(graph: Graph, name: str, axis: int) -> list[str]:
    """The values that were stacked along an axis.

    Raises:
        NotLinearError: if the value is not a stack.
    """
    maker = graph.makers.get(name)
    found: list[str] = []
    if maker is not None and maker.op_type == "ConcatFromSequence" and attributes(maker).get("new_axis", 0):
        sequence = graph.makers.get(maker.input[0])
        if sequence is not None and sequence.op_type == "SequenceConstruct" and attributes(maker)["axis"] == axis:
            found = list(sequence.input)
    elif maker is not None and maker.op_type == "Concat" and attributes(maker)["axis"] == axis:
        singles = [graph.makers.get(one) for one in maker.input]
        if all(_adds_axis(graph, single, axis) for single in singles):
            found = [single.input[0] for single in singles if single is not None]
    if not found or any(one in graph.constants for one in found):
        raise NotLinearError("the sum is not over a stack of values")
    return found


def _adds_axis(graph: Graph, node: NodeProto | None, axis: int) -> bool:
    return node is not None and node.op_type == "Unsqueeze" and Call(graph, node).integers("axes", 1) == (axis,)
