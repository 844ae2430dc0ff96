"""What is known about an ONNX graph without running it: constants and their values, types and sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_function, tensor_dtype_to_np_dtype
from onnx.reference import ReferenceEvaluator

Dims = tuple[int | None, ...]
"""Sizes of a value, None where they are free."""

_LARGE = 256
"""A tensor with more elements than this is not used to compute a shape."""
_NO_CONSTANTS = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"),
    *("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"),  # 8-bit weights must not become floats
}


class Graph:
    """The main graph of a model, and what is known about its values."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.outputs = {value.name for value in model.graph.output}
        self.names = {name for node in self.nodes for name in (*node.output, *read_by(node))} | {
            value.name for value in (*model.graph.input, *model.graph.initializer)
        }
        # From version 4 on, an initializer that is also an input is only that input's default.
        self.fed = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
        self.initializers = {t.name: t for t in model.graph.initializer if t.name not in self.fed}
        self._numbers: dict[str, np.ndarray | None] = {}
        self.constants: set[str] = set()
        self._types: dict[str, Any] = {}
        light = bare(model)
        while True:  # known sizes make constants, and constants make sizes known
            self._types |= _inferred(light)
            found = self._constants()
            if found == self.constants:
                break
            self.constants = found
            self._fold(light)

    def dims(self, name: str) -> Dims | None:
        """The sizes of a value, as far as they are known; None if not even their number is."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if name not in self._types or not self._types[name].HasField("shape"):
            return None
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in self._types[name].shape.dim)

    def type_of(self, name: str) -> int:
        """The type of a value as onnx numbers types; 0 if it is not known."""
        if name in self.initializers:
            return self.initializers[name].data_type
        return self._types[name].elem_type if name in self._types else 0

    def constant(self, name: str) -> np.ndarray | None:
        """The array of a value that is the same for all inputs; None if it is not, or cannot be computed."""
        if name not in self._numbers:
            self._numbers[name] = None
            if name in self.initializers:
                self._numbers[name] = numpy_helper.to_array(self.initializers[name])
            elif name in self.constants:
                self._numbers |= self._worked_out(self.makers[name])
        return self._numbers[name]

    def unused(self, name: str) -> str:
        """A name that no value has, now reserved."""
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def _constants(self) -> set[str]:
        known = {*self.initializers, *self.constants}
        for node in self.nodes:
            if self._is_constant(node, known):
                known.update(filter(None, node.output))
        return known

    def _is_constant(self, node: NodeProto, known: set[str]) -> bool:
        if node.domain not in ("", "ai.onnx") or node.op_type in _NO_CONSTANTS or any(subgraphs(node)):
            return False
        if node.op_type == "Shape":
            return node.input[0] in known or None not in (self.sizes(node.output[0]) or (None,))
        if node.op_type == "Gather" and node.input[0] not in known and node.input[1] in known:
            return self._taken_sizes(node) is not None
        needed = node.input[:1] if node.op_type == "CastLike" else node.input
        return all(name in known for name in needed if name)

    def sizes(self, name: str) -> Dims | None:
        """The result of a `Shape`; None for other values."""
        node = self.makers.get(name)
        if node is None or node.op_type != "Shape" or node.domain or (dims := self.dims(node.input[0])) is None:
            return None
        given = attributes(node)
        return dims[given.get("start", 0) : given.get("end", len(dims))]

    def _taken_sizes(self, node: NodeProto) -> np.ndarray | None:
        """The sizes that a `Gather` selects from a `Shape`; some may be unknown."""
        sizes, index = self.sizes(node.input[0]), self.constant(node.input[1])
        taken = None if sizes is None or index is None else np.array(sizes, object)[index]
        return None if taken is None or None in np.ravel(taken) else np.array(taken, np.int64)

    def _worked_out(self, node: NodeProto) -> dict[str, np.ndarray | None]:
        """The outputs of a node by name, computed by onnx's reference evaluator."""
        if node.op_type == "Shape" and node.input[0] not in self.constants:
            return {node.output[0]: np.array(self.sizes(node.output[0]), np.int64)}
        if node.op_type == "Gather" and node.input[0] not in self.constants:
            return {node.output[0]: self._taken_sizes(node)}
        feeds = {name: self.constant(name) for name in node.input if name}
        if node.op_type == "CastLike":  # of whose second input only the type counts
            kind = self.type_of(node.input[1])
            feeds[node.input[1]] = np.zeros((), tensor_dtype_to_np_dtype(kind)) if kind else None
        made = [name for name in node.output if name]
        if any(value is None for value in feeds.values()):
            return dict.fromkeys(made)
        return self.evaluated(node, feeds)

    def evaluated(self, node: NodeProto, feeds: dict[str, np.ndarray | None]) -> dict[str, np.ndarray | None]:
        """The outputs of a node by name, from its inputs; None where the reference cannot tell."""
        made = [name for name in node.output if name]
        function = make_function("", "constant", list(feeds), made, [node], self.model.opset_import)
        try:
            return dict(zip(made, ReferenceEvaluator(function).run(None, feeds, {})))
        except Exception:  # the reference raises whatever it meets, and does not have every operation
            return dict.fromkeys(made)

    def _fold(self, light: ModelProto) -> None:
        """Puts the numbers of small constants into a model, in place of the nodes that make them."""
        self._numbers = {name: value for name, value in self._numbers.items() if value is not None}
        nodes = list(light.graph.node)
        del light.graph.node[:]
        for node in nodes:
            if (values := self._small_constants(node)) is None:
                light.graph.node.append(node)
            else:
                light.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())

    def _small_constants(self, node: NodeProto) -> dict[str, np.ndarray] | None:
        values = {}
        for name in filter(None, node.output):
            dims = self.dims(name)
            large = dims is not None and prod(size or 0 for size in dims) > _LARGE
            value = None if large or name not in self.constants else self.constant(name)
            if value is None or value.size > _LARGE:
                return None
            values[name] = value
        return values


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside of a node: branches of an `If`, the body of a `Loop`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def read_by(node: NodeProto) -> set[str]:
    """The values that a node reads, those that its subgraphs take from outside among them."""
    names = set(filter(None, node.input))
    for graph in subgraphs(node):
        made = {value.name for value in (*graph.input, *graph.initializer)}
        made |= {name for inner in graph.node for name in inner.output}
        inside = {name for inner in graph.node for name in read_by(inner)} | {value.name for value in graph.output}
        names |= inside - made
    return names


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name, texts as text."""
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def bare(model: ModelProto) -> ModelProto:
    """The model without its large tensors, and without the sizes that the file says its values have.

    Those are stale in files whose inputs were made free by hand.
    """
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name or "graph"
    for field in ("node", "input", "output", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    made = {name for node in model.graph.node for name in node.output}
    light.graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    for value in (*light.graph.output, *light.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    for tensor in model.graph.initializer:
        large = prod(tensor.dims) > _LARGE
        light.graph.initializer.append(
            TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims) if large else tensor
        )
    return light


def _inferred(model: ModelProto) -> dict[str, Any]:
    """The types of the values by name, as far as onnx can tell."""
    light = bare(model)
    with contextlib.suppress(Exception):  # of an operation that it takes amiss; what the file says is left
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    values = (*light.graph.value_info, *light.graph.input, *light.graph.output)
    return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
