"""Rings written around an image, one value per channel: older codebases pad with the bias of a 1x1 in this way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor

from ...algebra._linear import LinearOp
from ...algebra._spec import Pads
from ...errors import NotLinearError
from .call import Call, Read
from .graph import Graph
from .layers import around, pads_of, reads


@reads("ScatterND")
def _ring(call: Call) -> Read:
    r"""`y = F.pad(x, ...); y[:, :, :1] = b; ...`: it is $b$ wherever x was not, so it equals padding before the bias.

    torch writes the places as constants, so it works for one image size only.
    """
    writes = list(_writes(call))
    pad = call.graph.makers.get(writes[0].name(0))
    if pad is None or pad.op_type != "Pad":
        raise NotLinearError("ScatterND writes into a value that is not padded")
    padded = Call(call.graph, pad)
    pads, mode = pads_of(padded)
    if mode != "zeros":
        raise NotLinearError("ScatterND writes over padding that is not zeros")
    ring = _one_per_channel(_written(call.graph, pad.output[0], [write.node for write in writes]), pads)
    return (padded.name(0),), lambda x: _padded_before_its_bias(x, pads, ring)


def _writes(call: Call) -> Iterator[Call]:
    """The nodes that write into one value after the other, the first one first."""
    before = call.graph.makers.get(call.name(0))
    if before is not None and before.op_type == "ScatterND":
        yield from _writes(Call(call.graph, before))
    yield call


def _written(graph: Graph, name: str, writes: list[NodeProto]) -> np.ndarray:
    """What is written into a value, and NaN elsewhere.

    Raises:
        NotLinearError: if that is not the same for all inputs.
    """
    dims = graph.dims(name)
    if dims is None or None in dims:
        raise NotLinearError("ScatterND writes into an image of unknown size")
    numbers: np.ndarray | None = np.full([size or 0 for size in dims], np.nan)
    for node in writes:
        updates = Call(graph, node).numbers(2).astype(np.float64)
        feeds = {node.input[0]: numbers, node.input[1]: Call(graph, node).numbers(1), node.input[2]: updates}
        numbers = graph.evaluated(node, feeds)[node.output[0]]
    if numbers is None:
        raise NotLinearError("ScatterND writes values that cannot be computed in advance")
    return numbers


def _one_per_channel(numbers: np.ndarray, pads: Pads) -> Tensor:
    """The value of each channel, if all of the padding holds it and nothing else was written."""
    inside = np.zeros(numbers.shape, bool)
    size = zip(numbers.shape[2:], pads)
    image = (slice(None), slice(None), *(slice(low, length - high) for length, (low, high) in size))
    inside[image] = True
    ring = numbers.swapaxes(0, 1)[~inside.swapaxes(0, 1)].reshape(numbers.shape[1], -1)
    if not np.isnan(numbers[inside]).all() or not (ring == ring[:, :1]).all():
        raise NotLinearError("ScatterND does not write one number per channel around an image")
    return torch.from_numpy(ring[:, 0].copy())


def _padded_before_its_bias(x: LinearOp, pads: Pads, ring: Tensor) -> LinearOp:
    bias = x.kernel.bias
    if len(bias) != len(ring) or (not bias.is_meta and not torch.allclose(bias.to(ring), ring, 1e-4, 1e-6)):
        raise NotLinearError("the ring around an image is not the bias of the layer that made the image")
    return around(x._replace(shifts=False), pads, "zeros")._replace(shifts=x.shifts)
