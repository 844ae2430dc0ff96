"""A node of a graph as what reads it needs it, and on which axis the channels of a value lie."""

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
"""The values that a node is a linear map of, and the map."""


class Call:
    """A node, and what is known of its inputs."""

    def __init__(self, graph: Graph, node: NodeProto) -> None:
        self.graph, self.node, self.given = graph, node, attributes(node)

    def name(self, index: int) -> str:
        """Of an input; "" if it is not there."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def dims(self, index: int) -> Dims | None:
        """The sizes of an input."""
        return self.graph.dims(self.name(index))

    def is_constant(self, index: int) -> bool:
        """Whether an input is the same for all inputs of the graph."""
        return self.name(index) in self.graph.constants

    def numbers(self, index: int) -> np.ndarray:
        """Those of a constant input.

        Raises:
            NotLinearError: if it is none.
        """
        value = self.graph.constant(self.name(index))
        if value is None:
            raise NotLinearError(f"input {self.name(index)!r} of {self.node.op_type} is no constant that is known")
        return value

    def tensor(self, index: int) -> Tensor:
        """The numbers of a constant input, of its dtype where torch has that."""
        return as_tensor(self.numbers(index))

    def integers(self, attribute: str, index: int) -> tuple[int, ...] | None:
        """What is an attribute in old opsets and an input in new ones; None if it is not there."""
        if attribute in self.given:
            return tuple(self.given[attribute])
        return tuple(map(int, self.numbers(index).ravel())) if self.name(index) else None


def as_tensor(numbers: np.ndarray) -> Tensor:
    """An array as a tensor; bfloat16, which numpy does not have of its own, as float32."""
    known = numbers.dtype in (np.float16, np.float32, np.float64)
    return torch.from_numpy(np.array(numbers, dtype=numbers.dtype if known else np.float32))


def side(value: LinearOp, rank: int | None) -> str | None:
    """Where the channels of a value lie: on the "first" axis after the batch, or on the "last" one, as of tokens.

    None if that is the same axis, or if the value does the same to all numbers.
    """
    if rank == 2 or (not value.ndim and value.outputs == 1):
        return None
    return "last" if value.flat else "first"


def agree(sides: set[str | None]) -> None:
    """Checks that channels lie on one axis.

    Raises:
        NotLinearError: if they do not.
    """
    if {"first", "last"} <= sides:
        raise NotLinearError("what is done to channels on one axis meets what is done to those on another")


def side_of(axis: int, rank: int) -> str | None:
    """Where an axis lies, as `side` says it.

    Raises:
        NotLinearError: if it is none of channels.
    """
    axis %= rank
    if rank == 2 and axis == 1:
        return None
    if axis not in (1, rank - 1):
        raise NotLinearError(f"axis {axis} of {rank} is none of channels")
    return "first" if axis == 1 else "last"


def on(value: LinearOp, where: str | None, channels: int | None, rank: int | None) -> LinearOp:
    """A value with its channels on one side, and so many of them.

    Raises:
        NotLinearError: if that is not so, or not known.
    """
    found = side(value, rank)
    agree({where, found})
    if where == "last" and found is None:  # a pointwise value is one of the first axis
        raise NotLinearError("numbers on the last axis follow what is no linear layer")
    value = repeated(value, channels) if channels else value
    if value.inputs == value.outputs == 1 and not channels:
        raise NotLinearError("the number of channels is not known")
    return value


def with_axes(value: LinearOp, rank: int) -> LinearOp:
    """A pointwise value of some channels as a convolution with one tap, or as a linear layer if it is of vectors."""
    if value.ndim:
        return value
    ones = (1,) * max(1, rank - 2)
    kernel = Kernel(value.kernel.weight.reshape(*value.kernel.weight.shape, *ones), value.kernel.bias)
    return value._replace(kernel=kernel, stride=ones, dilation=ones, flat=rank == 2, untouched=False)


def all_equal(dims: Any, others: Any) -> bool:
    """Whether two values have the same sizes for certain."""
    return dims is not None and None not in dims and dims == others
