"""Finds the scales and zero points of the integers in a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from .graph import Graph, Operator, Scale

Range = tuple[float, float]
"""The smallest and the largest value."""

_AS_THEY_CAME = (
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "DEPTH_TO_SPACE",
    "GATHER",
    "MAXIMUM",
    "MAX_POOL_2D",
    "MINIMUM",
    "MIRROR_PAD",
    "PAD",
    "PADV2",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "SPACE_TO_DEPTH",
    "STRIDED_SLICE",
)
"""Operators whose output has the same scale as their input."""
_FIRM = {"LOGISTIC": Scale(np.array([1 / 256]), -128), "TANH": Scale(np.array([1 / 128]), 0)}
"""Operators whose output has a fixed scale."""
_IN_INTEGERS = (
    *_AS_THEY_CAME,
    *_FIRM,
    "ADD",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "HARD_SWISH",
    "LEAKY_RELU",
    "MEAN",
    "MUL",
    "PRELU",
    "QUANTIZE",
    "RELU",
    "RELU6",
    "TRANSPOSE_CONV",
)
"""Operators that compute in 8 bits."""


def in_integers(operator: Operator, exact: Collection[str] = ()) -> bool:
    """Whether an operator computes in 8 bits.

    Args:
        operator: an operator of a graph in float32.
        exact: names of values that must be computed in float32.
    """
    return operator.kind in _IN_INTEGERS and operator.output not in exact


def with_scales(
    graph: Graph, ranges: Mapping[str, Range], exact: Collection[str] = ()
) -> tuple[Graph, dict[str, Scale]]:
    """Find a scale for every image of a graph.

    If an operator needs its inputs in one scale and they have two, a `QUANTIZE` converts one of them first.

    Args:
        graph: a graph in float32.
        ranges: the smallest and the largest value of every image; those of input and output are fixed.
        exact: names of values that must be computed in float32.

    Returns:
        The graph, with any new `QUANTIZE`, and the scales by the names of images and constants.
    """
    groups = _Groups(graph, dict(ranges))
    groups.firm[graph.input] = scale_of(*ranges[graph.input])
    for operator in graph.operators:
        if in_integers(operator, exact):
            groups.add(operator)
        else:
            groups.graph.operators.append(operator)
    groups.end(scale_of(*ranges[graph.output]))
    return groups.graph, groups.scales()


class _Groups:
    """Images that have one scale."""

    def __init__(self, graph: Graph, ranges: dict[str, Range]) -> None:
        self.source, self.ranges = graph, ranges
        self.graph = Graph(graph.input, graph.output, dict(graph.arrays))
        self.above: dict[str, str] = {}
        self.firm: dict[str, Scale] = {}
        """The required scale of a group, by its first member."""

    def add(self, operator: Operator) -> None:
        """Add an operator, and put its output into a group."""
        if operator.kind in _FIRM:
            self.firm[operator.output] = _FIRM[operator.kind]
        if operator.kind in _AS_THEY_CAME:
            images = dict.fromkeys(name for name in operator.inputs if self._is_number(name))
            several = len({self._first(name) for name in images}) > 1
            names = {one: self._loose(one) if several and self._first(one) in self.firm else one for one in images}
            operator = replace(operator, inputs=tuple(names.get(one, one) for one in operator.inputs))
            for name in names.values():
                self._join(operator.output, name)
        self.graph.operators.append(operator)

    def end(self, scale: Scale) -> None:
        """Give the output its scale."""
        name = self.graph.output
        if self._first(name) in self.firm:
            self._rename(name, f"{name}/loose")
            self.graph.operators.append(Operator("QUANTIZE", (f"{name}/loose",), name, {}))
        self.firm[self._first(name)] = scale

    def _rename(self, old: str, new: str) -> None:
        """Rename the output of the last operator."""
        self.graph.operators[-1] = replace(self.graph.operators[-1], output=new)
        self.graph.arrays[new], self.ranges[new] = self.graph.arrays[old], self.ranges[old]
        self.above = {new if one == old else one: new if first == old else first for one, first in self.above.items()}
        self.firm = {new if one == old else one: scale for one, scale in self.firm.items()}

    def scales(self) -> dict[str, Scale]:
        """By the names of images."""
        members: dict[str, list[str]] = {}
        for name in filter(self._is_number, self.graph.arrays):
            members.setdefault(self._first(name), []).append(name)
        found = {}
        for first, names in members.items():
            ends = [self._range(name) for name in names]
            scale = self.firm.get(first) or scale_of(min(low for low, _ in ends), max(high for _, high in ends))
            found.update(dict.fromkeys(names, scale))
        return found

    def _loose(self, name: str) -> str:
        """The same image in its own scale."""
        other = f"{name}/loose"
        if other not in self.graph.arrays:
            self.graph.arrays[other], self.ranges[other] = self.graph.arrays[name], self.ranges[name]
            self.graph.operators.append(Operator("QUANTIZE", (name,), other, {}))
        return other

    def _range(self, name: str) -> Range:
        data = self.graph.arrays[name].data
        return self.ranges[name] if data is None else (float(data.min()), float(data.max()))

    def _is_number(self, name: str) -> bool:
        return self.graph.arrays[name].dtype == np.float32

    def _first(self, name: str) -> str:
        while name in self.above:
            name = self.above[name]
        return name

    def _join(self, one: str, other: str) -> None:
        one, other = self._first(one), self._first(other)
        if one != other:
            self.above[one] = other


def scale_of(low: float, high: float) -> Scale:
    """The scale of activations: 256 steps from low to high, one of which is zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = ((high - low) or 1.0) / 255  # any step does for channels that are always zero
    return Scale(np.array([step]), round(-128 - low / step))


def scale_of_weights(weight: np.ndarray, axis: int | None, levels: int, bias: np.ndarray, step: float) -> Scale:
    """The scale of weights: the same number of steps on both sides of zero.

    Args:
        weight: the weight.
        axis: the axis of the output channels, each of which gets a scale; None for one scale.
        levels: the number of steps on each side.
        bias: the bias, in steps of the image's step times this scale; it must not exceed 2^30 steps.
        step: the step of the image.
    """
    if axis is None:
        largest, most = np.abs(weight).max(keepdims=True).reshape(1), np.abs(bias).max(keepdims=True)
    else:
        largest, most = np.abs(weight).max(axis=tuple(one for one in range(4) if one != axis)), np.abs(bias)
    return Scale(np.maximum(np.maximum(largest / levels, most / step / 2**30), 1e-12), axis=axis or 0)
