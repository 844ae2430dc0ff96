"""Stores the weights of a TFLite graph in float16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .graph import Graph, Operator


def with_half_weights(graph: Graph) -> Graph:
    """The same graph, in which a `DEQUANTIZE` converts every weight from float16 to float32 before it is used.

    Programs do that once, before the first image, or compute in float16 throughout.

    Args:
        graph: a graph in float32.
    """
    arrays, operators = dict(graph.arrays), []
    for operator in graph.operators:
        for name in operator.inputs:
            array = arrays[name]
            if array.data is not None and array.dtype == np.float32 and array.data.ndim:
                stored = f"{name}/float16"
                arrays[stored] = replace(array, dtype=np.dtype(np.float16), data=array.data.astype(np.float16))
                arrays[name] = replace(array, data=None)
                operators.append(Operator("DEQUANTIZE", (stored,), name, {}))
        operators.append(operator)
    return Graph(graph.input, graph.output, arrays, operators)
