"""A network as a file of TFLite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from .._plain import Dynamic, plain_steps
from .emit import graph_of
from .graph import packed
from .half import with_half_weights


def write_tflite(
    net: nn.Module,
    example: Tensor,
    dynamic: Dynamic,
    file: Path,
    note: Mapping[str, str],
    half: bool = False,
    shuffle_as_conv: bool = False,
) -> None:
    """Writes a fused network, (N, H, W, C) in and out, in float32.

    Args:
        net: in eval mode, in float32.
        example: an input (N, C, H, W).
        dynamic: which sizes are free.
        file: where to.
        note: what the metadata says.
        half: whether weights are stored in float16.
        shuffle_as_conv: whether pixel shuffles are transposed convolutions of ones and zeros.

    Raises:
        ExportError: for what TFLite has no operator for.
    """
    graph = graph_of(plain_steps(net, example, dynamic), dynamic, shuffle_as_conv)
    file.write_bytes(packed(with_half_weights(graph) if half else graph, note))
