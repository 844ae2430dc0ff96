"""How to write a network in each format, and which program runs the file."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..modules._hooks import copy_module
from ._coreml import run_read_back, write_coreml
from ._executorch import run_executorch, write_executorch
from ._lean import Gather, lean, one_by_one
from ._opset import OPSET, in_opset
from ._plain import Dynamic
from ._runners import Run, run_ncnn, run_onnxruntime, run_openvino, run_program, run_reference
from ._shader.files import read_glsl, read_wgsl, try_glsl, try_wgsl, write_glsl, write_wgsl
from ._shader.trial import Trial
from ._tflite import run_litert, write_tflite

Metadata = Mapping[str, str]


class Format(NamedTuple):
    """How to write a network to files, and how to run them."""

    name: str
    suffixes: tuple[str, ...]
    """The suffixes of the files that make up one network; the first is the one that a user names."""
    extra: str
    """What to install: `pip install 'reparam[extra]'`."""
    packages: tuple[str, ...]
    write: Callable[..., str | None]
    """Takes a network in float32, an example, `Dynamic`, the file, `Metadata`, and `options` by name; it may return a
    remark for the report."""
    read: Callable[[Path], tuple[str, Run]]
    """Returns the name of the program that runs the file, and the function that runs it."""
    options: tuple[str, ...] = ()
    """The arguments of `export` that `write` accepts; it gets those that were given."""
    tried: Callable[[Path, nn.Module], Trial] | None = None
    """Compares the file with the network, if it is not compared to the precision of float32."""


def free_sizes(example: Tensor, dynamic: Dynamic) -> tuple[dict[int, Any], ...] | None:
    """The free sizes, in the form that `torch.export` takes."""
    if not dynamic:
        return None
    names = ("batch", "", "height", "width")[: 1 if dynamic == "batch" else example.dim()]
    return ({axis: torch.export.Dim(name, min=1) for axis, name in enumerate(names) if name},)


def _write_program(net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Metadata) -> None:
    program = torch.export.export(net, (example,), dynamic_shapes=free_sizes(example, dynamic))
    torch.export.save(program, file, extra_files=dict(metadata))


def _write_onnx(
    net: nn.Module,
    example: Tensor,
    dynamic: Dynamic,
    file: Path,
    metadata: Metadata,
    opset: int = OPSET,
    half: bool = False,
) -> None:
    net = lean(net, Gather)
    if half:
        net, example = copy_module(net).half(), example.half()
    _write_graph(net, example, dynamic, file, metadata, opset)


def _write_graph(
    net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Metadata, opset: int = OPSET
) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # about the exporter's own internals
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=max(opset, OPSET),
            dynamic_shapes=free_sizes(example, dynamic),
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    if opset == OPSET:
        program.save(file)
    else:
        file.write_bytes(in_opset(program.model_proto, opset).SerializeToString())


def _write_openvino(net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Metadata) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        middle = Path(folder) / "network.onnx"
        write_for_openvino(net, example, dynamic, middle, metadata)
        convert_to_openvino(middle, file, metadata)


def write_for_openvino(net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Metadata) -> None:
    """Write ONNX in the form that OpenVINO converts best."""
    _write_graph(lean(net, one_by_one), example, dynamic, file, metadata)


def convert_to_openvino(source: Path, target: Path, metadata: Metadata) -> None:
    """Convert an ONNX file to OpenVINO."""
    import openvino

    model = openvino.convert_model(source)
    for key, value in metadata.items():
        model.set_rt_info(value, ["reparam", key])
    openvino.save_model(model, target, compress_to_fp16=False)


def _write_ncnn(net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Metadata) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        traced = Path(folder) / "network.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes that the trace fixes: the file is tried on others
            torch.jit.trace(net, example[:1], check_trace=False).save(traced)
        for path in _converted_to_ncnn(traced, example, dynamic):
            path.replace(file.with_suffix(path.suffix))


def _converted_to_ncnn(traced: Path, example: Tensor, dynamic: Dynamic) -> list[Path]:
    """The two files that pnnx writes next to its input."""
    import pnnx

    shape = (1, *example.shape[1:])
    command = [pnnx.EXEC_PATH, traced.name, "fp16=0", f"inputshape={_listed(shape)}"]
    if dynamic is True:  # sizes that differ in a second shape are free; the batch always is
        command += [f"inputshape2={_listed((*shape[:2], *(size + 3 for size in shape[2:])))}"]
    done = subprocess.run(command, cwd=traced.parent, capture_output=True, text=True)  # it prints every step
    made = [traced.with_name(f"network.ncnn{suffix}") for suffix in (".param", ".bin")]
    if done.returncode or not all(path.exists() for path in made):
        raise ExportError(f"pnnx could not convert the network: {(done.stderr or done.stdout).strip()[-400:]}")
    return made


def _listed(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]f32"


def _read_onnx(file: Path) -> tuple[str, Run]:
    return ("onnxruntime", run_onnxruntime(file)) if find_spec("onnxruntime") else ("onnx", run_reference(file))


FORMATS = (
    Format("ONNX", (".onnx",), "onnx", ("onnx", "onnxscript"), _write_onnx, _read_onnx, ("opset", "half")),
    Format("torch.export", (".pt2",), "torch", ("torch",), _write_program, lambda file: ("torch", run_program(file))),
    Format(
        "OpenVINO",
        (".xml", ".bin"),
        "openvino",
        ("openvino", "onnx", "onnxscript"),
        _write_openvino,
        lambda file: ("openvino", run_openvino(file)),
    ),
    Format(
        "ncnn",
        (".ncnn.param", ".ncnn.bin"),
        "ncnn",
        ("ncnn", "pnnx"),
        _write_ncnn,
        lambda file: ("ncnn", run_ncnn(file)),
    ),
    Format(
        "TFLite",
        (".tflite",),
        "litert",
        ("ai_edge_litert",),
        write_tflite,
        lambda file: ("litert", run_litert(file)),
        ("half", "shuffle_as_conv"),
    ),
    Format(
        "ExecuTorch",
        (".pte",),
        "executorch",
        ("executorch",),
        write_executorch,
        lambda file: ("executorch", run_executorch(file)),
    ),
    Format(
        "Core ML",
        (".mlpackage",),
        "coreml",
        ("coremltools",),
        write_coreml,
        lambda file: ("torch, read back", run_read_back(file)),
        ("half",),
    ),
    Format("user shader", (".glsl",), "", (), write_glsl, read_glsl, tried=try_glsl),
    Format("WGSL", (".wgsl",), "webgpu", (), write_wgsl, read_wgsl, tried=try_wgsl),
)
