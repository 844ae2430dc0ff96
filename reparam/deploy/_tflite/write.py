"""Writes a network as a TFLite file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .._plain import Dynamic, plain_steps
from .calibrate import ranges_of
from .emit import graph_of
from .graph import packed
from .half import with_half_weights
from .int8 import in_int8


def write_tflite(
    net: nn.Module,
    example: Tensor,
    dynamic: Dynamic,
    file: Path,
    note: Mapping[str, str],
    half: bool = False,
    shuffle_as_conv: bool = False,
) -> None:
    """Write a fused network in float32, with (N, H, W, C) in and out.

    Args:
        net: the network, in eval mode, in float32.
        example: an input (N, C, H, W).
        dynamic: which sizes are free.
        file: the file to write.
        note: the note for the metadata.
        half: whether weights are stored in float16.
        shuffle_as_conv: whether pixel shuffles are transposed convolutions of ones and zeros.

    Raises:
        ExportError: for what TFLite has no operator for.
    """
    graph = graph_of(plain_steps(net, example, dynamic), dynamic, shuffle_as_conv)
    file.write_bytes(packed(with_half_weights(graph) if half else graph, note))


def write_int8_tflite(
    net: nn.Module,
    file: Path,
    note: Mapping[str, str],
    samples: Iterable[np.ndarray],
    per_channel: bool,
    bits: int,
    io: str,
) -> None:
    """Write a fused image network in 8 bits, for images of any size.

    Args:
        net: the network, in eval mode, in float32, with `colors`; input and output are in the range 0 to 1.
        file: the file to write.
        note: the note for the metadata.
        samples: inputs (N, C, H, W), used to measure activations.
        per_channel: whether each output channel of a weight has its own scale.
        bits: bits of the weights, 8, 7 or 4.
        io: the type of input and output, "float32", "uint8" or "int8".

    Raises:
        ExportError: for what TFLite has no operator for.
    """
    colors: int = net.colors  # type: ignore[assignment]  # a number
    graph = graph_of(plain_steps(net, torch.rand(2, colors, 8, 9)), True)
    ranges = {**ranges_of(graph, samples), graph.input: (0.0, 1.0)}
    if io != "float32":
        ranges[graph.output] = (0.0, 1.0)
    file.write_bytes(packed(in_int8(graph, ranges, per_channel, bits, io), note))
