"""Runs models in ONNX Runtime, before and after fusing, on random inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from ml_dtypes import finfo
from onnx import ModelProto, helper

from ...errors import ExportError
from .graph import Graph
from .rewrite import Replacement, needed

Feeds = dict[str, np.ndarray]
Shapes = tuple[tuple[int, ...], ...]
"""Of the inputs of one run."""
_DTYPES = {
    f"tensor({theirs})": numpys
    for theirs, numpys in [
        *(("float", "float32"), ("double", "float64")),
        *((kind, kind) for kind in ("float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool")),
    ]
}
"""numpy's names for what ONNX Runtime says of a type."""
_LENGTHS = ((9, 14), (16, 24), (32, 32), (64, 96), (128, 128), (224, 224), (640, 640))
"""Sizes to try for free axes, until three of them run: some graphs accept only multiples of 32, or no small sizes."""
_RUNS = 3
_CHOICES = {
    *("TopK", "NonMaxSuppression", "NonZero", "ArgMax", "ArgMin", "Unique"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
}
"""Operations after which rounding, or chance, may change everything."""


class Difference(NamedTuple):
    """Of two runs, over the largest value."""

    error: float
    """Of the fused graph."""
    rounding: float
    """Of the graph itself, on an input that differs by rounding."""

    def allowed(self, epsilon: float) -> bool:
        """Whether the error is one of rounding."""
        return self.error <= 10 * max(epsilon, self.rounding)


def session(model: str | os.PathLike[str] | bytes) -> Any:
    """What runs a model, and prints nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _epsilon(dtype: Any) -> float:
    """The rounding of a type of numbers; 0 of integers."""
    return float(finfo(dtype).eps) if np.dtype(dtype).kind in "fV" else 0.0


def region_error(graph: Graph, one: Replacement) -> float:
    """The difference between a region and its convolution on inputs with large borders, relative to the largest value.

    Raises:
        ExportError: if ONNX Runtime cannot run the region alone, or they differ by more than rounding.
    """
    dtype = helper.tensor_dtype_to_np_dtype(graph.type_of(one.source))
    try:
        before, after = (session(_part(graph, one, fused).SerializeToString()) for fused in (False, True))
        images = [_with_borders(seed, shape).astype(dtype) for seed, shape in enumerate(_shapes(graph, one))]
        found = [_difference(before, after, {one.source: x}, [one.output]) for x in images]
    except Exception as error:  # it raises whatever it meets
        raise ExportError(f"ONNX Runtime cannot run this region alone: {str(error).strip()}") from error
    worst = Difference(*(max(values) for values in zip(*found)))
    if not worst.allowed(_epsilon(dtype)):
        raise ExportError(
            f"the layer of this region differs by {worst.error:.1e} of the largest value, but rounding explains only "
            f"{worst.rounding:.1e}"
        )
    return worst.error


def _with_borders(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape)
    for axis in range(2, len(shape)):
        for edge in (0, -1):
            x[(slice(None),) * axis + (edge,)] *= 10
    return x


def _part(graph: Graph, one: Replacement, fused: bool) -> ModelProto:
    """A model of one region: its source is the input, and its output the output."""
    nodes, tensors, names = needed(graph, one.nodes if fused else graph.nodes, [one.output], [one.source])
    tensors += [tensor for name, tensor in graph.initializers.items() if name in names]
    tensors += [tensor for tensor in one.tensors if fused]
    dims = graph.dims(one.source) or (None,) * (one.value.ndim + 2)
    x = helper.make_tensor_value_info(one.source, graph.type_of(one.source), [None, *dims[1:]])
    y = helper.make_tensor_value_info(one.output, graph.type_of(one.output), None)
    part = helper.make_graph(nodes, "region", [x], [y], tensors)
    model = graph.model
    return helper.make_model(
        part, ir_version=max(model.ir_version, 4), opset_imports=model.opset_import, functions=model.functions
    )


def _shapes(graph: Graph, one: Replacement) -> Iterator[tuple[int, ...]]:
    value = one.value
    dims = graph.dims(one.source) or (None,) * (value.ndim + 2)
    if value.flat:
        yield (*(3 + axis if length is None else length for axis, length in enumerate(dims[:-1])), value.inputs)
        return
    reach = [d * (k - 1) + 1 for k, d in zip(value.kernel.size, value.dilation)]
    for more in (1, 4):
        least = [r + more * s + axis for axis, (r, s) in enumerate(zip(reach, value.stride))]
        yield (2, value.inputs, *(small if known is None else known for small, known in zip(least, dims[2:])))


def whole_differs(
    graph: Graph, source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> tuple[Difference, list[Shapes]]:
    """The difference between two files with the same inputs and outputs, and the shapes of the inputs that were tried.

    Raises:
        ExportError: if the source runs on none of the inputs, the target fails where the source runs, or they differ by
            more than rounding.
    """
    before, after = _loaded(source, os.fspath(source)), _loaded(target, f"what was made of {source}")
    names = [value.name for value in before.get_outputs() if value.name not in _chosen(graph)]
    worst, shapes = Difference(0.0, 0.0), []
    problem: Exception | None = None
    for feeds in _inputs_of(before.get_inputs()):
        tried = tuple(array.shape for array in feeds.values())
        try:
            before.run(names or None, feeds)
        except Exception as error:  # it raises whatever it meets
            problem = error
            continue
        worst = Difference(*map(max, worst, _compared(before, after, feeds, names, tried)))
        shapes.append(tried)
        if len(shapes) == _RUNS:
            break
    if not shapes:
        raise ExportError(f"ONNX Runtime cannot run {source} on any input that was tried: {str(problem).strip()}")
    return worst, shapes


def _loaded(file: str | os.PathLike[str], what: str) -> Any:
    try:
        return session(file)
    except Exception as error:  # of operations that it does not have, say
        raise ExportError(f"ONNX Runtime cannot load {what}: {str(error).strip()}") from error


def _compared(before: Any, after: Any, feeds: Feeds, names: Sequence[str], tried: Any) -> Difference:
    try:
        found = _difference(before, after, feeds, names)
    except Exception as error:
        raise ExportError(f"ONNX Runtime fails in the fused graph, for inputs of {tried}: {error}") from error
    epsilon = max(_epsilon(_DTYPES.get(value.type, bool)) for value in before.get_outputs())
    if not found.allowed(epsilon):
        raise ExportError(
            f"the fused graph differs by {found.error:.1e} of the largest value, for inputs of {tried}, but rounding "
            f"explains only {found.rounding:.1e}"
        )
    return found


def _difference(before: Any, after: Any, feeds: Feeds, names: Sequence[str]) -> Difference:
    if not names:
        after.run(None, feeds)
        return Difference(0.0, 0.0)
    wanted = before.run(names, feeds)
    rounded = before.run(names, {name: _changed(array) for name, array in feeds.items()})
    got = after.run(names, feeds)
    return Difference(max(map(_distance, got, wanted), default=0.0), max(map(_distance, rounded, wanted), default=0.0))


def _changed(array: np.ndarray) -> np.ndarray:
    """An input that differs by rounding; integers stay."""
    if array.dtype.kind not in "fV":
        return array
    signs = np.random.default_rng(1).choice([-1, 1], array.shape)
    return (array * (1 + _epsilon(array.dtype) * signs)).astype(array.dtype)


def _distance(a: Any, b: Any) -> float:
    """Of the largest value; of integers the mean, as rounding may change a few by one."""
    if not isinstance(a, np.ndarray) or a.dtype.kind not in "fVbiu":
        return 0.0
    if a.shape != b.shape:
        return inf
    integers = b.dtype.kind in "biu"
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    gap = np.where(same, 0, np.abs(a - b))
    largest = np.abs(np.where(np.isfinite(b), b, 0)).max() or 1.0
    distance = float((gap.mean() if integers else gap.max()) / largest)
    return inf if np.isnan(distance) else distance


def _inputs_of(values: Sequence[Any]) -> Iterator[Feeds]:
    """Random inputs for a graph, in several sizes if sizes are free.

    Raises:
        ExportError: if an input is not a tensor of numbers.
    """
    for value in values:
        if value.type not in _DTYPES:
            raise ExportError(f"input {value.name!r} is a {value.type}, so the fused graph cannot be tried")
    free = any(not isinstance(size, int) for value in values for size in value.shape)
    for seed, lengths in enumerate(_LENGTHS if free else _LENGTHS[:_RUNS]):
        generator, sizes = np.random.default_rng(seed), dict[str, int]()
        yield {value.name: _random(value, 1 + seed % 2, lengths, sizes, generator) for value in values}


def _random(
    value: Any, batch: int, lengths: Sequence[int], sizes: dict[str, int], generator: np.random.Generator
) -> np.ndarray:
    shape = []
    for axis, size in enumerate(value.shape):
        if not isinstance(size, int):
            name = size or f"{value.name}.{axis}"
            size = sizes.setdefault(name, lengths[len(sizes) % 2]) if axis else batch
        shape.append(size)
    dtype = np.dtype(_DTYPES[value.type])
    if dtype.kind in "biu":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.random(shape).astype(dtype)


def _chosen(graph: Graph) -> set[str]:
    """The values behind a choice or chance, which rounding may change entirely."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op_type in _CHOICES or found.intersection(node.input):
            found.update(node.output)
    return found
