"""A network as a file of TFLite, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from .._plain import plain_steps
from .emit import graph_of
from .graph import packed


def write_tflite(
    net: nn.Module,
    example: Tensor,
    dynamic: bool,
    file: Path,
    note: Mapping[str, str],
    *,
    shuffle_as_conv: bool = False,
) -> None:
    """Writes a fused network, (N, H, W, C) in and out.

    Args:
        net: in eval mode, in float32.
        example: an input (N, C, H, W).
        dynamic: whether batch, height and width are free.
        file: where to.
        note: what the metadata says.
        shuffle_as_conv: whether pixel shuffles are transposed convolutions of ones and zeros.

    Raises:
        ExportError: for what TFLite has no operator for.
    """
    graph = graph_of(plain_steps(net, example, dynamic), dynamic, shuffle_as_conv)
    file.write_bytes(packed(graph, note))


def run_litert(file: Path | bytes, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """A file of TFLite in LiteRT: from (N, C, H, W) to the same, in float32 whatever the file takes and gives."""
    from ai_edge_litert.interpreter import Interpreter

    given: dict[str, Any] = {"model_content": file} if isinstance(file, bytes) else {"model_path": str(file)}
    interpreter = Interpreter(**given, num_threads=threads or None)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: np.ndarray) -> np.ndarray:
        image = np.ascontiguousarray(_as_told(x.transpose(0, 2, 3, 1), source))
        if tuple(interpreter.get_input_details()[0]["shape"]) != image.shape:
            interpreter.resize_tensor_input(source["index"], image.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        y = _as_numbers(interpreter.get_tensor(target["index"]), target)
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if y.ndim == 4 else y

    return run


def _as_told(x: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
    """In the type of an input."""
    scale, zero = told["quantization"]
    if not scale:
        return x
    ends = np.iinfo(told["dtype"])
    return (np.rint(x / scale) + zero).clip(ends.min, ends.max).astype(told["dtype"])


def _as_numbers(y: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
    scale, zero = told["quantization"]
    return (y.astype(np.float32) - zero) * np.float32(scale) if scale else y
