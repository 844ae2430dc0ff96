"""Writes networks in 8 bits: by ONNX Runtime's static quantization, and as TFLite."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...deploy._exporter import metadata_of, write_as
from ...deploy._formats import FORMATS, convert_to_openvino, write_for_openvino
from ...deploy._tflite import write_int8_tflite

_ONNX = FORMATS[0]


def write_int8(
    net: nn.Module,
    file: Path,
    samples: Iterator[np.ndarray],
    per_channel: bool,
    weight_bits: int = 8,
    io: str = "float32",
) -> None:
    """Write a fused network in 8 bits, as .onnx, .xml or .tflite.

    Args:
        net: a network with `colors`.
        file: the file to write.
        samples: inputs of the network, used to measure activations.
        per_channel: whether each output channel of a weight has its own scale.
        weight_bits: 8; or 7, which is half the range, so that the sum of two 8-bit products fits 16 bits; for .tflite
            also 4.
        io: for .tflite, the type of input and output: "float32", "uint8" or "int8".
    """
    if file.suffix == ".tflite":
        write_int8_tflite(net, file, metadata_of(net), samples, per_channel, weight_bits, io)
        return
    colors: Any = net.colors
    example, for_openvino = torch.rand(2, colors, 8, 9), file.suffix == ".xml"
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        exact, rounded = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        write_as(_ONNX._replace(write=write_for_openvino) if for_openvino else _ONNX, net, example, True, exact)
        _quantize(exact, rounded, samples, per_channel, weight_bits, quantize_outputs=not for_openvino)
        if for_openvino:
            convert_to_openvino(rounded, file, metadata_of(net))
        else:
            rounded.replace(file)


def _quantize(
    source: Path, target: Path, samples: Iterator[np.ndarray], per_channel: bool, bits: int, quantize_outputs: bool
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(samples, None)
            return None if x is None else {"input": x}

    options: dict[str, Any] = {
        "TensorQuantOverrides": {"input": [{"rmin": np.float32(0), "rmax": np.float32(1)}]},
        "CalibMovingAverage": True,  # else a single pixel widens the whole range
    }
    if not quantize_outputs:
        options["OpTypesToExcludeOutputQuantization"] = ["Conv"]
    with _without_advice():
        quantize_static(
            source,
            target,
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=bits == 7,
            extra_options=options,
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence ONNX Runtime's advice to run a preprocessing step, which these graphs do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
