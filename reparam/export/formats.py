"""One function per format to write a network, and one to run what was written."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError

Run = Callable[[Tensor], np.ndarray]
Metadata = Mapping[str, str]

OPSET = 18
"""Of ONNX: the oldest that torch's exporter writes as it is, without converting, so that most programs read it."""


class Format(NamedTuple):
    """How a network gets into files, and out of them."""

    name: str
    suffixes: tuple[str, ...]
    """Of the files that make up one network; the first is the one that is asked for."""
    extra: str
    """What to install: `pip install 'reparam[extra]'`."""
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, bool, Path, Metadata], None]
    read: Callable[[Path], tuple[str, Run]]
    """Gives the name of the program that runs the file, and a function that does."""


def _dynamic(example: Tensor) -> tuple[dict[int, Any], ...]:
    names = {0: "batch", **{axis + 2: name for axis, name in enumerate(("height", "width")[: example.dim() - 2])}}
    return ({axis: torch.export.Dim(name, min=1) for axis, name in names.items()},)


def _write_program(net: nn.Module, example: Tensor, dynamic: bool, file: Path, metadata: Metadata) -> None:
    program = torch.export.export(net, (example,), dynamic_shapes=_dynamic(example) if dynamic else None)
    torch.export.save(program, file, extra_files=dict(metadata))


def _read_program(file: Path) -> tuple[str, Run]:
    module = torch.export.load(file).module()
    return "torch", lambda x: module(x).numpy()


def _write_onnx(net: nn.Module, example: Tensor, dynamic: bool, file: Path, metadata: Metadata) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # of what the exporter uses inside
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_dynamic(example) if dynamic else None,
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(file)


def _read_onnx(file: Path) -> tuple[str, Run]:
    if find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return "onnxruntime", lambda x: session.run(None, {"input": x.numpy()})[0]
    from onnx.reference import ReferenceEvaluator

    reference = ReferenceEvaluator(os.fspath(file))
    return "onnx", lambda x: reference.run(None, {"input": x.numpy()})[0]  # type: ignore[index]  # a list here


def _write_openvino(net: nn.Module, example: Tensor, dynamic: bool, file: Path, metadata: Metadata) -> None:
    import openvino

    middle = file.with_suffix(".onnx")
    _write_onnx(net, example, dynamic, middle, metadata)
    model = openvino.convert_model(middle)
    for key, value in metadata.items():
        model.set_rt_info(value, ["reparam", key])
    openvino.save_model(model, file, compress_to_fp16=False)
    middle.unlink()


def _read_openvino(file: Path) -> tuple[str, Run]:
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return "openvino", lambda x: compiled(x.numpy())[0].copy()


_PNNX = """
import sys, torch, pnnx
net, examples = torch.load(sys.argv[1], weights_only=False)
pnnx.export(net, sys.argv[2], examples[0], *examples[1:], fp16=False)
"""


def _write_ncnn(net: nn.Module, example: Tensor, dynamic: bool, file: Path, metadata: Metadata) -> None:
    other = torch.rand(example.shape[0], example.shape[1], *(size + 3 for size in example.shape[2:]))
    given, traced = file.with_name("given.pth"), file.with_name("network.pt")
    torch.save((net, [(example[:1],), (other[:1],)] if dynamic else [(example[:1],)]), given)
    command = [sys.executable, "-c", _PNNX, str(given), str(traced)]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)  # it prints all that it does
    made = [file.with_name(f"network.ncnn{suffix}") for suffix in (".param", ".bin")]  # beside what it was given
    if done.returncode or not all(path.exists() for path in made):
        raise ExportError(f"pnnx could not convert the network: {(done.stderr or done.stdout).strip()[-400:]}")
    for path in made:
        path.replace(file.with_suffix(path.suffix))


def _read_ncnn(file: Path) -> tuple[str, Run]:
    import ncnn

    net = ncnn.Net()
    for reduced in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{reduced}", False)
    net.load_param(str(file))
    net.load_model(str(file.with_suffix(".bin")))

    def run(x: Tensor) -> np.ndarray:
        images = []
        for image in x.numpy():
            extractor = net.create_extractor()
            extractor.input(net.input_names()[0], ncnn.Mat(image).clone())
            images.append(np.array(extractor.extract(net.output_names()[0])[1]))
        return np.stack(images)

    return "ncnn", run


FORMATS = (
    Format("ONNX", (".onnx",), "onnx", ("onnx", "onnxscript"), _write_onnx, _read_onnx),
    Format("torch.export", (".pt2",), "torch", ("torch",), _write_program, _read_program),
    Format(
        "OpenVINO", (".xml", ".bin"), "openvino", ("openvino", "onnx", "onnxscript"), _write_openvino, _read_openvino
    ),
    Format("ncnn", (".ncnn.param", ".ncnn.bin"), "ncnn", ("ncnn", "pnnx"), _write_ncnn, _read_ncnn),
)


def read_note(file: Path) -> dict[str, str]:
    """What `export` wrote about a network in a file of ONNX or OpenVINO; empty in a file of another program."""
    if file.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(file)
        keys = ("scale", "colors", "radius", "range", "order", "reparam")
        return {
            key: model.get_rt_info(["reparam", key]).astype(str) for key in keys if model.has_rt_info(["reparam", key])
        }
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
