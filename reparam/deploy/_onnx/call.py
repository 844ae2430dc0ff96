"""A node of a graph in the form that readers need, and the axis of a value's channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor

from ...algebra._affine import repeated
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp
from ...errors import NotLinearError
from .graph import Dims, Graph, attributes

Read = tuple[tuple[str, ...], Callable[..., LinearOp]]
"""The values of which a node is a linear map, and the map."""


class Call:
    """A node, and what is known about its inputs."""

    def __init__(self, graph: Graph, node: NodeProto) -> None:
        self.graph, self.node, self.given = graph, node, attributes(node)

    def name(self, index: int) -> str:
        """The name of an input; "" if it is missing."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def dims(self, index: int) -> Dims | None:
        """The sizes of an input."""
        return self.graph.dims(self.name(index))

    def is_constant(self, index: int) -> bool:
        """Whether an input is the same for all inputs of the graph."""
        return self.name(index) in self.graph.constants

    def numbers(self, index: int) -> np.ndarray:
        """The values of a constant input.

        Raises:
            NotLinearError: if it is not a known constant.
        """
        value = self.graph.constant(self.name(index))
        if value is None:
            raise NotLinearError(f"input {self.name(index)!r} of {self.node.op_type} is not a known constant")
        return value

    def tensor(self, index: int) -> Tensor:
        """The values of a constant input, in its dtype if torch has it."""
        return as_tensor(self.numbers(index))

    def integers(self, attribute: str, index: int) -> tuple[int, ...] | None:
        """A setting that is an attribute in old opsets and an input in new ones; None if it is missing."""
        if attribute in self.given:
            return tuple(self.given[attribute])
        return tuple(map(int, self.numbers(index).ravel())) if self.name(index) else None


def as_tensor(numbers: np.ndarray) -> Tensor:
    """An array as a tensor. bfloat16, which numpy does not have, becomes float32."""
    known = numbers.dtype in (np.float16, np.float32, np.float64)
    return torch.from_numpy(np.array(numbers, dtype=numbers.dtype if known else np.float32))


def side(value: LinearOp, rank: int | None) -> str | None:
    """The side of a value's channels: the "first" axis after the batch, or the "last" one, as for tokens.

    None if both are the same axis, or if the value treats all elements equally.
    """
    if rank == 2 or (not value.ndim and value.outputs == 1):
        return None
    return "last" if value.flat else "first"


def agree(sides: set[str | None]) -> None:
    """Check that all channels are on the same axis.

    Raises:
        NotLinearError: if they are not.
    """
    if {"first", "last"} <= sides:
        raise NotLinearError("values with their channels on different axes are combined")


def side_of(axis: int, rank: int) -> str | None:
    """The side of an axis, as `side` names it.

    Raises:
        NotLinearError: if it is not an axis of channels.
    """
    axis %= rank
    if rank == 2 and axis == 1:
        return None
    if axis not in (1, rank - 1):
        raise NotLinearError(f"axis {axis} of {rank} is not an axis of channels")
    return "first" if axis == 1 else "last"


def on(value: LinearOp, where: str | None, channels: int | None, rank: int | None) -> LinearOp:
    """A value with the given side and number of channels.

    Raises:
        NotLinearError: if it has another side or number, or the number is not known.
    """
    found = side(value, rank)
    agree({where, found})
    if where == "last" and found is None:  # a pointwise value counts as one of the first axis
        raise NotLinearError("constants on the last axis follow something that is not a linear layer")
    value = repeated(value, channels) if channels else value
    if value.inputs == value.outputs == 1 and not channels:
        raise NotLinearError("the number of channels is not known")
    return value


def with_axes(value: LinearOp, rank: int) -> LinearOp:
    """A pointwise value as a convolution with one tap, or as a linear layer if it acts on vectors."""
    if value.ndim:
        return value
    ones = (1,) * max(1, rank - 2)
    kernel = Kernel(value.kernel.weight.reshape(*value.kernel.weight.shape, *ones), value.kernel.bias)
    return value._replace(kernel=kernel, stride=ones, dilation=ones, flat=rank == 2, untouched=False)


def all_equal(dims: Any, others: Any) -> bool:
    """Whether two values are known to have the same sizes."""
    return dims is not None and None not in dims and dims == others
