"""Turns a region of an ONNX graph into one convolution, and puts that in the region's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from ...algebra._affine import repeated
from ...algebra._kernels import regroup
from ...algebra._linear import LinearOp
from ...errors import NotLinearError
from ...fusing._regions import Piece
from .graph import Graph, read_by
from .steps import FLOATS

_MODES = {"replicate": "edge", "circular": "wrap"}


class Replacement(NamedTuple):
    """What replaces a region."""

    source: str
    output: str
    nodes: tuple[NodeProto, ...]
    tensors: tuple[TensorProto, ...]
    value: LinearOp


def replacement(graph: Graph, piece: Piece, output: str) -> Replacement:
    """The nodes and tensors of one convolution or linear layer, rounded once to the type of the file.

    Args:
        graph: the graph that contains the region.
        piece: the region.
        output: the output of the layer: that of the region, or a value that only passes it on.

    Raises:
        NotLinearError: if its input is not known well enough, or its values are too large for that type.
    """
    source = str(piece.source)
    kind, dims = graph.type_of(output), graph.dims(source)
    if kind not in FLOATS or graph.type_of(source) != kind:
        raise NotLinearError(f"{source!r} and {output!r} have different types")
    value = _of_channels(piece.value(torch.empty(0, dtype=torch.float64)), dims)
    maker = _Maker(graph, output, kind)
    nodes = maker.linear(value, source, dims) if value.flat else maker.convolution(value, source)
    return Replacement(source, output, tuple(nodes), tuple(maker.tensors), value)


def _of_channels(value: LinearOp, dims: Sequence[int | None] | None) -> LinearOp:
    """A value that treats all channels equally, with as many channels as its source has."""
    channels = None if dims is None else dims[-1 if value.flat else 1]
    if value.inputs == value.outputs == 1:
        if channels is None:
            raise NotLinearError("the number of channels is not known")
        value = repeated(value, channels)
    if channels not in (None, value.inputs):
        raise NotLinearError(f"a convolution of {value.inputs} channels gets {channels}")
    return value


class _Maker:
    """Makes the nodes for a region, with unused names."""

    def __init__(self, graph: Graph, output: str, kind: int) -> None:
        self.graph, self.output, self.kind = graph, output, kind
        maker = graph.makers[output]
        self.name = maker.name if maker.name and len(maker.output) == 1 else output  # it stays if it makes others
        self.tensors: list[TensorProto] = []

    def convolution(self, value: LinearOp, source: str) -> Iterator[NodeProto]:
        pads = value.pads or ((0, 0),) * value.ndim
        flat = [low for low, _ in pads] + [high for _, high in pads]
        if value.padding_mode != "zeros" and value.is_padded:
            around = self.tensor("pads", np.array([0, 0, *flat[: value.ndim], 0, 0, *flat[value.ndim :]], np.int64))
            mode = _MODES.get(value.padding_mode, value.padding_mode)
            padded = self.graph.unused(f"{self.output}.padded")
            yield helper.make_node("Pad", [source, around], [padded], f"{self.name}.pad", mode=mode)
            source, flat = padded, [0] * len(flat)
        yield helper.make_node(
            "Conv",
            [source, self.rounded("weight", value.kernel.weight), *self.bias(value)],
            [self.output],
            self.name,
            kernel_shape=value.kernel.size,
            strides=value.stride,
            pads=flat,
            dilations=value.dilation,
            group=value.groups,
        )

    def linear(self, value: LinearOp, source: str, dims: Sequence[int | None] | None) -> Iterator[NodeProto]:
        weight, bias = regroup(value.kernel, value.groups, 1).weight[..., 0], self.bias(value)
        if dims is not None and len(dims) == 2:
            inputs = [source, self.rounded("weight", weight), *bias]
            yield helper.make_node("Gemm", inputs, [self.output], self.name, transB=1)
            return
        product = self.graph.unused(f"{self.output}.product") if bias else self.output
        yield helper.make_node("MatMul", [source, self.rounded("weight", weight.T)], [product], self.name)
        if bias:
            yield helper.make_node("Add", [product, *bias], [self.output], f"{self.name}.bias")

    def bias(self, value: LinearOp) -> list[str]:
        """Its name, if there is one."""
        return [self.rounded("bias", value.kernel.bias)] if value.kernel.bias.any() else []

    def rounded(self, what: str, numbers: Tensor) -> str:
        with np.errstate(over="ignore"):
            array = numbers.numpy().astype(helper.tensor_dtype_to_np_dtype(self.kind))
        if not np.isfinite(array.astype(np.float64)).all():
            raise NotLinearError(f"its {what} has values that are not finite in {array.dtype}")
        return self.tensor(what, np.ascontiguousarray(array))

    def tensor(self, what: str, array: np.ndarray) -> str:
        name = self.graph.unused(f"{self.output}.{what}")
        self.tensors.append(numpy_helper.from_array(array, name))
        return name


def needed(
    graph: Graph, nodes: Sequence[NodeProto], outputs: Iterable[str], given: Iterable[str] = ()
) -> tuple[list[NodeProto], list[TensorProto], set[str]]:
    """The nodes that compute `outputs` from `given`, with tensors in place of constant nodes, and all names they read.

    A node whose result is the same for all inputs, although it reads some (such as the size of an axis), becomes a
    tensor.
    """
    names, kept, tensors = set(outputs), [], []
    for node in reversed(nodes):
        if not names.intersection(node.output) or set(given).intersection(node.output):
            continue
        made = [name for name in node.output if name]
        if all(name in graph.constants for name in made) and not read_by(node) <= graph.constants:
            values = [graph.constant(name) for name in made]
            if not names.intersection(graph.outputs, made) and all(value is not None for value in values):
                tensors += [numpy_helper.from_array(np.asarray(value), name) for value, name in zip(values, made)]
                continue
        names |= read_by(node)
        kept.append(node)
    return kept[::-1], tensors, names


def rewrite(graph: Graph, replacements: Sequence[Replacement]) -> None:
    """Replace regions by convolutions in the model itself, and remove everything that is no longer used."""
    model = graph.model
    kept, tensors, names = needed(graph, list(_replaced(graph, replacements)), graph.outputs)
    tensors += [tensor for one in replacements for tensor in one.tensors if tensor.name in names]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    stay = [t for t in model.graph.initializer if t.name in names or t.name in graph.fed]
    gone = {t.name for t in model.graph.initializer} - {t.name for t in stay}
    del model.graph.initializer[:]
    model.graph.initializer.extend([*stay, *tensors])
    _inputs_of_old_files(model, gone, tensors)
    made = {name for node in kept for name in node.output} | {t.name for t in model.graph.initializer}
    for field, key in (("value_info", "name"), ("quantization_annotation", "tensor_name")):
        known = [one for one in getattr(model.graph, field) if getattr(one, key) in made]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(known)


def _replaced(graph: Graph, replacements: Sequence[Replacement]) -> Iterator[NodeProto]:
    by_output = {one.output: one for one in replacements}
    for node in graph.nodes:
        found = [by_output[name] for name in node.output if name in by_output]
        for one in found:
            yield from one.nodes
        if found and len(node.output) > 1:  # the others may be read
            rest = NodeProto()
            rest.CopyFrom(node)
            for index, name in enumerate(node.output):
                if name in by_output:
                    rest.output[index] = graph.unused(f"{name}.before")
            yield rest
        elif not found:
            yield node


def _inputs_of_old_files(model: ModelProto, gone: set[str], tensors: Sequence[TensorProto]) -> None:
    """Before version 4 every initializer is also an input."""
    if model.ir_version >= 4:
        return
    inputs = [value for value in model.graph.input if value.name not in gone]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
