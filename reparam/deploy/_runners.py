"""The programs that run a file, behind one call."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ExportError
from ._prelu import without_prelu

Run = Callable[[np.ndarray], np.ndarray]
"""From the input, float32 and contiguous, to the output."""


def run_program(file: Path) -> Run:
    """A file of `torch.export`."""
    module = torch.export.load(file).module()
    return lambda x: module(torch.from_numpy(x)).numpy()


def run_onnxruntime(file: Path, threads: int = 0, rewritten: bool = False) -> Run:
    """A file of ONNX in ONNX Runtime; 0 threads leave the choice to it, here and below.

    `rewritten` runs the same function in the nodes that ONNX Runtime is fast at, if the package onnx is there.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = without_prelu(file) if rewritten and find_spec("onnx") else file
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def run_reference(file: Path) -> Run:
    """A file of ONNX in the reference that comes with its package: slow, and always there."""
    from onnx.reference import ReferenceEvaluator

    reference = ReferenceEvaluator(os.fspath(file))
    return lambda x: reference.run(None, {reference.input_names[0]: x})[0]  # type: ignore[index]  # a list here


def run_openvino(file: Path, threads: int = 0, precision: str = "f32") -> Run:
    """A file of OpenVINO or ONNX in OpenVINO, which computes in "f32" or "bf16"."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda x: compiled(x)[0].copy()  # what it returns is overwritten by the next call


def run_ncnn(file: Path, threads: int = 0) -> Run:
    """A `.ncnn.param`, with its `.ncnn.bin` beside it, in ncnn, which takes one image at a time."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads or torch.get_num_threads()
    for reduced in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{reduced}", False)
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise ExportError(f"ncnn does not know all of what is in {file.name}; it has printed what")
    return lambda x: np.stack([_extract(net, image) for image in x])


def _extract(net: Any, image: np.ndarray) -> np.ndarray:
    import ncnn

    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(image).clone())
    failed, mat = extractor.extract(net.output_names()[0])
    if failed:
        raise ExportError(f"ncnn gives the code {failed} for an image of {image.shape}")
    return np.array(mat)
