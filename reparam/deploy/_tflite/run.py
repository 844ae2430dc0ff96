"""Runs TFLite files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .graph import note_in, operators_in


def run_litert(file: Path | bytes, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Run a TFLite file in LiteRT, with (N, C, H, W) in float32 in and out, whatever types the file has."""
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
    """Convert to the type of an input."""
    scale, zero = told["quantization"]
    if not scale:
        return x
    ends = np.iinfo(told["dtype"])
    return (np.rint(x / scale) + zero).clip(ends.min, ends.max).astype(told["dtype"])


def _as_numbers(y: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
    scale, zero = told["quantization"]
    return (y.astype(np.float32) - zero) * np.float32(scale) if scale else y


def about_tflite(file: Path) -> tuple[dict[str, str], tuple[int | None, ...]]:
    """The note in a file, and the shape of its input as (N, C, H, W), with None for free sizes."""
    from ai_edge_litert.interpreter import Interpreter

    (source,) = Interpreter(model_path=str(file)).get_input_details()
    sizes = [None if size < 0 else int(size) for size in source["shape_signature"]]
    shape = (sizes[0], sizes[3], sizes[1], sizes[2]) if len(sizes) == 4 else tuple(sizes)
    return note_in(file.read_bytes()), shape


def operators_of_tflite(file: Path) -> int:
    """How many operators there are in a file."""
    return operators_in(file.read_bytes())
