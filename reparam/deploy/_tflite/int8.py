"""A graph of TFLite in whole numbers of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .graph import Array, Graph, Operator, Scale
from .scales import IN_INTEGERS, Range, scale_of_weights, with_scales

_FLOAT, _INT8 = np.dtype(np.float32), np.dtype(np.int8)
_WEIGHTS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0}
"""Operators with weights, their second input, and which axis of these counts the output channels."""


def in_int8(
    graph: Graph, ranges: Mapping[str, Range], per_channel: bool = True, bits: int = 8, io: str = "float32"
) -> Graph:
    """The same network, computed in 8 bits where operators do, and in float32 where they do not.

    Args:
        graph: in float32.
        ranges: the smallest and the largest value of every image in it; those of its input and output stand firm.
        per_channel: whether each output channel of a weight has its own scale.
        bits: of the weights, 8 or 7.
        io: what goes in and comes out: float32, uint8 or int8.
    """
    return _Rounding(graph, ranges, per_channel, bits).done(io)


class _Rounding:
    """The work of rounding one graph."""

    def __init__(self, graph: Graph, ranges: Mapping[str, Range], per_channel: bool, bits: int) -> None:
        self.per_channel, self.levels = per_channel, 2 ** (bits - 1) - 1
        self.source, self.scales = with_scales(graph, ranges)
        self.graph = Graph(graph.input, graph.output, dict(self.source.arrays))
        for name, scale in self.scales.items():
            if self.source.arrays[name].data is None:
                self.graph.arrays[name] = replace(self.source.arrays[name], dtype=_INT8, scale=scale)

    def done(self, io: str) -> Graph:
        """The graph."""
        for operator in self.source.operators:
            if self.source.arrays[operator.output].dtype != _FLOAT:  # sizes
                self.graph.operators.append(operator)
            elif operator.kind in IN_INTEGERS:
                self._round(operator)
            else:
                self._leave(operator)
        self._ends(np.dtype(io))
        return self.graph

    def _round(self, operator: Operator) -> None:
        """Puts an operator down in integers."""
        inputs = list(operator.inputs)
        if operator.kind in _WEIGHTS:
            first = 2 if operator.kind == "TRANSPOSE_CONV" else 0
            bias = inputs[-1]
            inputs[1], scale = self._weight(operator, inputs[first], bias)
            inputs[-1] = self._bias(bias, inputs[first], scale)
        else:
            inputs = [self._number(one) for one in inputs]
        self.graph.operators.append(replace(operator, inputs=tuple(inputs)))

    def _weight(self, operator: Operator, image: str, bias: str) -> tuple[str, Scale]:
        name, data = operator.inputs[1], self._data(operator.inputs[1])
        axis = _WEIGHTS[operator.kind] if self.per_channel else None
        scale = scale_of_weights(data, axis, self.levels, self._data(bias), self._step(image))
        shape = [-1 if one == axis else 1 for one in range(4)]
        steps = np.rint(data / scale.scale.reshape(shape)).clip(-self.levels, self.levels)
        return self.graph.constant(steps.astype(np.int8), f"{name}/int8", scale), scale

    def _bias(self, name: str, image: str, weight: Scale) -> str:
        scale = weight.scale * self._step(image)
        steps = np.rint(self._data(name).astype(np.float64) / scale).astype(np.int32)
        return self.graph.constant(steps, f"{name}/int32", Scale(scale))

    def _number(self, name: str) -> str:
        """An input that is no weight: a constant is rounded, others are already."""
        array = self.source.arrays[name]
        if array.data is None or array.dtype != _FLOAT:
            return name
        steps = np.rint(array.data / self.scales[name].scale[0]) + self.scales[name].zero
        return self.graph.constant(steps.clip(-128, 127).astype(np.int8), f"{name}/int8", self.scales[name])

    def _leave(self, operator: Operator) -> None:
        """Puts an operator down in float32, between integers."""
        inputs = tuple(self._as_float(name) for name in operator.inputs)
        given = f"{operator.output}/float"
        self.graph.arrays[given] = self.source.arrays[operator.output]
        self.graph.operators.append(replace(operator, inputs=inputs, output=given))
        self.graph.operators.append(Operator("QUANTIZE", (given,), operator.output, {}))

    def _as_float(self, name: str) -> str:
        if name not in self.scales or self.source.arrays[name].data is not None:
            return name
        given = f"{name}/float"
        if given not in self.graph.arrays:
            self.graph.arrays[given] = self.source.arrays[name]
            self.graph.operators.append(Operator("DEQUANTIZE", (name,), given, {}))
        return given

    def _ends(self, dtype: np.dtype) -> None:
        """Gives the input and the output their type, under their names."""
        if dtype == _INT8:
            return
        graph = self.graph
        inside = {graph.input: f"{graph.input}/int8", graph.output: f"{graph.output}/int8"}
        graph.operators = [
            replace(one, inputs=tuple(inside.get(x, x) for x in one.inputs), output=inside.get(one.output, one.output))
            for one in graph.operators
        ]
        for name, other in inside.items():
            graph.arrays[other] = graph.arrays[name]
            graph.arrays[name] = self._end(name, dtype)
        kind = "DEQUANTIZE" if dtype == _FLOAT else "QUANTIZE"
        graph.operators.insert(0, Operator("QUANTIZE", (graph.input,), inside[graph.input], {}))
        graph.operators.append(Operator(kind, (inside[graph.output],), graph.output, {}))

    def _end(self, name: str, dtype: np.dtype) -> Array:
        scale = self.scales[name]
        unsigned = replace(scale, zero=scale.zero + 128) if dtype == np.uint8 else None
        return replace(self.source.arrays[name], dtype=dtype, scale=unsigned)

    def _data(self, name: str) -> np.ndarray:
        data = self.source.arrays[name].data
        assert data is not None, name
        return data

    def _step(self, image: str) -> float:
        return float(self.scales[image].scale[0])
