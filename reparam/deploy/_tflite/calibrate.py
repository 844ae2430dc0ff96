"""Measures the ranges of the images inside a graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .graph import Graph, packed
from .scales import Range


def ranges_of(graph: Graph, samples: Iterable[np.ndarray]) -> dict[str, Range]:
    """The smallest and the largest value of every image, averaged over the samples.

    Args:
        graph: a graph in float32.
        samples: inputs (N, C, H, W).
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=packed(graph, {}),
        experimental_preserve_all_tensors=True,
        # Delegates hide the values inside them.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    (source,) = interpreter.get_input_details()
    ends = []
    for x in samples:
        image = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        interpreter.resize_tensor_input(source["index"], image.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        places = {one["name"]: one["index"] for one in interpreter.get_tensor_details()}
        values = {name: interpreter.get_tensor(places[name]) for name in _images(graph)}
        ends.append({name: (float(value.min()), float(value.max())) for name, value in values.items()})
    return {name: _mean([one[name] for one in ends]) for name in _images(graph)}


def _images(graph: Graph) -> list[str]:
    produced = [graph.input, *(operator.output for operator in graph.operators)]
    return [name for name in produced if graph.arrays[name].dtype == np.float32]


def _mean(ends: list[Range]) -> Range:
    low, high = np.mean(ends, axis=0)
    return float(low), float(high)
