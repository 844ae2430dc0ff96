"""The programs that run a file, each behind the same call."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ExportError
from ._prelu import without_prelu

Run = Callable[[np.ndarray], np.ndarray]
"""Maps the input, float32 and contiguous, to the output."""


def _in_dtype(half: bool, run: Run) -> Run:
    """The same function with float32 for the caller, if the file works in float16."""
    return (lambda x: run(x.astype(np.float16)).astype(np.float32)) if half else run


def run_program(file: Path) -> Run:
    """Run a file of `torch.export`."""
    module = program_in(file)
    return lambda x: module(torch.from_numpy(x)).numpy()


def program_in(file: Path) -> nn.Module:
    """Load the network in a file of `torch.export` as a module."""
    return torch.export.load(file).module()


def run_onnxruntime(file: Path, threads: int = 0, rewritten: bool = False) -> Run:
    """Run an ONNX file in ONNX Runtime. Here and below, 0 threads leave the number to the program.

    `rewritten` replaces slow nodes by equal ones that ONNX Runtime runs faster, if the package onnx is installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = without_prelu(file) if rewritten and find_spec("onnx") else file
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    return _in_dtype(image.type == "tensor(float16)", lambda x: session.run(None, {image.name: x})[0])


def run_reference(file: Path) -> Run:
    """Run an ONNX file in the reference evaluator of the package onnx: slow, but always available."""
    from onnx import TensorProto
    from onnx.reference import ReferenceEvaluator

    reference: Any = ReferenceEvaluator(os.fspath(file))
    (name,), (taken,) = reference.input_names, reference.input_types
    half = taken.tensor_type.elem_type == TensorProto.FLOAT16
    return _in_dtype(half, lambda x: reference.run(None, {name: x})[0])


def run_openvino(file: Path, threads: int = 0, precision: str = "f32") -> Run:
    """Run an OpenVINO or ONNX file in OpenVINO, computing in "f32" or "bf16"."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    half = compiled.inputs[0].get_element_type() == openvino.Type.f16
    return _in_dtype(half, lambda x: compiled(x)[0].copy())  # the next call overwrites what it returns


def run_ncnn(file: Path, threads: int = 0) -> Run:
    """Run a `.ncnn.param`, with its `.ncnn.bin` next to it, in ncnn, which takes one image at a time."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads or torch.get_num_threads()
    for reduced in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{reduced}", False)
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise ExportError(f"ncnn does not support everything in {file.name}; it has printed what it does not")
    return lambda x: np.stack([_extract(net, image) for image in x])


def _extract(net: Any, image: np.ndarray) -> np.ndarray:
    import ncnn

    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(image).clone())
    failed, mat = extractor.extract(net.output_names()[0])
    if failed:
        raise ExportError(f"ncnn fails with code {failed} for an image of {image.shape}")
    return np.array(mat)
