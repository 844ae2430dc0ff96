"""Adds operators to a graph, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import ExportError
from .._plain import Dynamic, Step
from .graph import Array, Graph, Operator

_FREE: Mapping[Dynamic, tuple[int, ...]] = {True: (0, 1, 2), "batch": (0,), False: ()}
"""The axes of (N, H, W, C) that are free."""
ACTIVATIONS: Mapping[tuple[Any, Any], str] = {(0.0, None): "RELU", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, 6.0): "RELU6"}
"""The activations that other operators can include, by their limits, with their numbers in the schema."""


class Emitter:
    """Adds the operators of steps to a graph, in float32.

    Args:
        graph: the graph.
        dynamic: which sizes are free.
        shuffle_as_conv: whether pixel shuffles are transposed convolutions of ones and zeros.
    """

    def __init__(self, graph: Graph, dynamic: Dynamic, shuffle_as_conv: bool) -> None:
        self.graph, self.dynamic, self.shuffle_as_conv = graph, dynamic, shuffle_as_conv
        self.step = Step("", "", (), {}, (), "")
        """The step whose operators are being added."""
        self.activation: str | None = None
        """The activation that the step's last operator includes."""

    def image(self, name: str, shape: tuple[int, ...]) -> str:
        """Add an image of shape (N, C, H, W)."""
        batch, channels, height, width = shape
        free = _FREE[self.dynamic][: None if height * width > 1 else 1]
        self.graph.arrays[name] = Array((batch, height, width, channels), np.dtype(np.float32), free)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape (N, C, H, W) of an image."""
        batch, height, width, channels = self.graph.arrays[name].shape
        return batch, channels, height, width

    def constant(self, numbers: Any, dtype: Any = np.float32) -> str:
        """Add a constant unchanged: a number, a list, or a tensor."""
        numbers = numbers.detach().cpu().numpy() if isinstance(numbers, Tensor) else numbers
        return self.graph.constant(np.asarray(numbers, dtype), self._name())

    def operator(self, kind: str, *inputs: str, shape: tuple[int, ...] | None = None, **options: Any) -> str:
        """Add an operator, and return the name of its output.

        Args:
            kind: its name in the schema.
            *inputs: the names of its inputs.
            shape: (N, C, H, W) of its output, if that differs from the step's.
            **options: its options in the schema.
        """
        name = self.image(self._name(), shape or self.step.shape)
        self.graph.operators.append(Operator(kind, inputs, name, options))
        return name

    def with_activation(self, kind: str, *inputs: str, **options: Any) -> str:
        """Add the last operator of a step, of a kind that can include an activation."""
        number = 1 + list(ACTIVATIONS.values()).index(self.activation) if self.activation else 0
        return self.operator(kind, *inputs, **options, fusedActivationFunction=number)

    def integers(self, kind: str, *inputs: str, count: int, **options: Any) -> str:
        """Add an operator that returns a row of integers."""
        name = self._name()
        self.graph.arrays[name] = Array((count,), np.dtype(np.int32))
        self.graph.operators.append(Operator(kind, inputs, name, options))
        return name

    def refusal(self, what: str) -> ExportError:
        """The error for something that no operator computes."""
        return ExportError(f"{self.step.layer or 'the network'} computes {what}, which no operator of TFLite does")

    def _name(self) -> str:
        return f"{self.step.name}/{len(self.graph.arrays)}"


Emit = Callable[..., str]
EMITS: dict[str, Emit] = {}
"""By the kind of a step: a function of an emitter, the names of the inputs, and the settings by name, which returns the
name of the output."""


def emits(*kinds: str) -> Callable[[Emit], Emit]:
    """Register the function that adds steps of some kinds."""

    def register(emit: Emit) -> Emit:
        EMITS.update(dict.fromkeys(kinds, emit))
        return emit

    return register
