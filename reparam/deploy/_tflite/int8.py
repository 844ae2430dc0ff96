"""A TFLite graph in 8-bit integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .graph import Array, Graph, Operator, Scale
from .scales import Range, in_integers, scale_of_weights, with_scales

_FLOAT, _INT8 = np.dtype(np.float32), np.dtype(np.int8)
_WEIGHTS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0}
"""Operators whose second input is a weight, and the axis of its output channels."""
_WITH_NIBBLES = ("CONV_2D", "DEPTHWISE_CONV_2D")
"""The operators whose weights may have 4 bits; other weights then keep 8."""


def in_int8(
    graph: Graph, ranges: Mapping[str, Range], per_channel: bool = True, bits: int = 8, io: str = "float32"
) -> Graph:
    """The same network, computed in 8 bits by operators that can, and in float32 by the others.

    If the output is float32, the operators after the last weights (such as the sum with the image) stay in float32.

    Args:
        graph: a graph in float32.
        ranges: the smallest and the largest value of every image in it. Those of the input are fixed, and so are those
            of the output if it is integers.
        per_channel: whether each output channel of a weight has its own scale.
        bits: bits of the weights, 8, 7 or 4.
        io: the type of input and output: float32, uint8 or int8.
    """
    exact = _after_the_weights(graph) if io == "float32" else set()
    source, scales = with_scales(graph, ranges, exact)
    return _Rounding(source, scales, exact, per_channel, bits).done(np.dtype(io))


def _after_the_weights(graph: Graph) -> set[str]:
    """The outputs of operators without weights that are not followed by any operator with weights."""
    before: set[str] = set()
    for operator in reversed(graph.operators):
        if operator.kind in _WEIGHTS or operator.output in before:
            before.update(operator.inputs)
    return {one.output for one in graph.operators if one.kind not in _WEIGHTS and one.output not in before}


class _Rounding:
    """Quantizes one graph. It provides each image in integers or in float32, as operators need it."""

    def __init__(
        self, source: Graph, scales: Mapping[str, Scale], exact: set[str], per_channel: bool, bits: int
    ) -> None:
        self.source, self.scales, self.exact = source, scales, exact
        self.per_channel, self.bits = per_channel, bits
        self.graph = Graph(source.input, source.output, dict(source.arrays))
        self.integers: dict[str, str] = {}
        """The integer version of an image, by its name in the source."""
        self.floats: dict[str, str] = {}

    def done(self, dtype: np.dtype) -> Graph:
        """The graph."""
        self._begin(dtype)
        for operator in self.source.operators:
            if self.source.arrays[operator.output].dtype != _FLOAT:  # sizes
                self._put(replace(operator, inputs=tuple(self._in_integers(one) for one in operator.inputs)))
            elif in_integers(operator, self.exact):
                self._round(operator)
            else:
                self._leave(operator)
        self._end(dtype)
        return self.graph

    def _begin(self, dtype: np.dtype) -> None:
        name = self.source.input
        if dtype == _FLOAT:
            self.floats[name] = name
            return
        self.integers[name] = name
        self.graph.arrays[name] = self._integers(name, dtype)
        if dtype != _INT8:
            self.integers[name] = self._converted("QUANTIZE", name, self._integers(name), "int8")

    def _end(self, dtype: np.dtype) -> None:
        """Give the output its name."""
        name = self.source.output
        found = self._in_floats(name) if dtype == _FLOAT else self._in_integers(name)
        if dtype not in (_FLOAT, _INT8):
            found = self._converted("QUANTIZE", found, self._integers(name, dtype), "last")
        graph = self.graph
        graph.arrays[name] = graph.arrays.pop(found)
        graph.operators = [
            replace(
                one,
                inputs=tuple(name if x == found else x for x in one.inputs),
                output=name if one.output == found else one.output,
            )
            for one in graph.operators
        ]

    def _round(self, operator: Operator) -> None:
        """Add an operator in integers."""
        if operator.kind in _WEIGHTS:
            inputs = self._with_weights(operator)
        else:
            inputs = [self._constant(one) or self._in_integers(one) for one in operator.inputs]
        name = self.integers[operator.output] = f"{operator.output}/int8"
        self.graph.arrays[name] = self._integers(operator.output)
        self._put(replace(operator, inputs=tuple(inputs), output=name))

    def _leave(self, operator: Operator) -> None:
        """Add an operator in float32."""
        name = self.floats[operator.output] = f"{operator.output}/float32"
        self.graph.arrays[name] = self.source.arrays[operator.output]
        self._put(replace(operator, inputs=tuple(self._in_floats(one) for one in operator.inputs), output=name))

    def _with_weights(self, operator: Operator) -> list[str]:
        *first, weight, bias = operator.inputs if operator.kind != "TRANSPOSE_CONV" else _turned(operator.inputs)
        image = first[0]
        data, axis = self._data(weight), _WEIGHTS[operator.kind] if self.per_channel else None
        bits = 8 if self.bits == 4 and operator.kind not in _WITH_NIBBLES else self.bits
        levels = 2 ** (bits - 1) - 1
        scale = scale_of_weights(data, axis, levels, self._data(bias), self._step(image))
        shape = [-1 if one == axis else 1 for one in range(4)]
        steps = np.rint(data / scale.scale.reshape(shape)).clip(-levels, levels).astype(np.int8)
        biases = Scale(scale.scale * self._step(image))
        whole = np.rint(self._data(bias).astype(np.float64) / biases.scale).astype(np.int32)
        names = {
            image: self._in_integers(image),
            weight: self.graph.constant(steps, f"{weight}/int{bits}", scale, nibbles=bits == 4),
            bias: self.graph.constant(whole, f"{bias}/int32", biases),
        }
        return [names.get(one, one) for one in operator.inputs]

    def _constant(self, name: str) -> str | None:
        """A constant operand, rounded; None if it is an image."""
        array = self.source.arrays[name]
        if array.data is None or array.dtype != _FLOAT:
            return None if array.data is None else name
        scale = self.scales[name]
        steps = np.rint(array.data / scale.scale[0]) + scale.zero
        return self.graph.constant(steps.clip(-128, 127).astype(np.int8), f"{name}/int8", scale)

    def _in_integers(self, name: str) -> str:
        if name not in self.integers and name in self.floats:
            self.integers[name] = self._converted("QUANTIZE", self.floats[name], self._integers(name), "int8")
        return self.integers.get(name, name)

    def _in_floats(self, name: str) -> str:
        if name not in self.floats and name in self.integers:
            self.floats[name] = self._converted("DEQUANTIZE", self.integers[name], self.source.arrays[name], "float32")
        return self.floats.get(name, name)

    def _converted(self, kind: str, name: str, array: Array, told: str) -> str:
        other = f"{name}/{told}"
        self.graph.arrays[other] = array
        self._put(Operator(kind, (name,), other, {}))
        return other

    def _integers(self, name: str, dtype: np.dtype = _INT8) -> Array:
        """An image in integers, signed or not."""
        scale = self.scales[name]
        scale = replace(scale, zero=scale.zero + 128) if dtype == np.uint8 else scale
        return replace(self.source.arrays[name], dtype=dtype, scale=scale)

    def _put(self, operator: Operator) -> None:
        self.graph.operators.append(operator)

    def _data(self, name: str) -> np.ndarray:
        data = self.source.arrays[name].data
        assert data is not None, name
        return data

    def _step(self, image: str) -> float:
        return float(self.scales[image].scale[0])


def _turned(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The inputs image, weight and bias. In a transposed convolution the sizes come first."""
    _, weight, image, bias = inputs
    return image, weight, bias
