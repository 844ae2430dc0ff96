"""The programs that can run a network, behind one call."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._timing import seconds
from ..errors import SpecError
from ..modules._hooks import copy_module
from ..modules._like import tensor_like
from ._cache import cached, keep
from ._executorch import run_executorch
from ._exporter import export, holds
from ._notes import about, told_shape
from ._runners import Run, program_in, run_ncnn, run_onnxruntime, run_openvino
from ._tflite import run_litert
from ._threads import check_threads, torch_threads

_EXPORT = 2
"""Counts up when `export` writes other files of the same network: those in the cache are then left alone."""

_TRIED = ("torch", "onnxruntime", "openvino")
"""What "auto" chooses from: compiling takes longer than most images do, bfloat16 is less exact, and ncnn is made for
other processors."""


def _torch(model: nn.Module | Path, threads: int, compiled: bool = False) -> Run:
    net = program_in(model) if isinstance(model, Path) else copy_module(model).to(memory_format=torch.channels_last)
    run = torch.compile(net) if compiled else net
    like = tensor_like(net)

    @torch.inference_mode()
    def engine(x: Any) -> Any:
        with torch_threads(threads):
            # Of one channel, `to` would leave the strides as they are, and the network would run in the other layout.
            image = torch.empty(x.shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
            y = run(image.copy_(torch.as_tensor(x))).float().contiguous()
        return y.to(x.device) if isinstance(x, Tensor) else y.cpu().numpy()

    return engine


class _Kind:
    """How an engine is made: of the network itself, or of a file that it is exported to; torch of either."""

    def __init__(self, package: str, make: Callable[..., Run], suffix: str = "", *options: object) -> None:
        self.package, self.make, self.suffix, self.options = package, make, suffix, options
        self.extra = {"onnxruntime": "onnx", "ai_edge_litert": "litert"}.get(package, package)


ENGINES = {
    "torch": _Kind("torch", _torch),
    "torch-compile": _Kind("torch", _torch, "", True),
    "onnxruntime": _Kind("onnxruntime", run_onnxruntime, ".onnx", True),
    "openvino": _Kind("openvino", run_openvino, ".xml"),
    "openvino-bf16": _Kind("openvino", run_openvino, ".xml", "bf16"),
    "ncnn": _Kind("ncnn", run_ncnn, ".ncnn.param"),
    "litert": _Kind("ai_edge_litert", run_litert, ".tflite"),
    "executorch": _Kind("executorch", run_executorch, ".pte"),
}


def installed_engines() -> list[str]:
    """The engines whose packages are installed.

    Example:
        >>> installed_engines()[:2]
        ['torch', 'torch-compile']
    """
    return [name for name, kind in ENGINES.items() if find_spec(kind.package)]


def make_engine(net: nn.Module, engine: str, threads: int = 0) -> Run:
    """Makes an engine that runs a network; all but torch run a file, which is kept in a cache where there is one.

    Args:
        net: the network, fused, in eval mode.
        engine: one of `ENGINES`.
        threads: how many it may use; 0 leaves that to the engine.

    Raises:
        SpecError: for an unknown name, one whose package is not installed, or too many threads.
    """
    kind = _kind(engine, threads)
    if not kind.suffix:
        return kind.make(net, threads, *kind.options)
    name = _name_of(net) + kind.suffix
    if (kept := cached(name)) and holds(kept, net):  # what a forward does is not in the name, and files may be damaged
        return kind.make(kept, threads, *kind.options)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps what an engine has open
        file = Path(folder) / name
        export(net, file)
        keep(name, lambda place: shutil.copytree(folder, place.parent, dirs_exist_ok=True))
        return kind.make(file, threads, *kind.options)


FILE_ENGINES = {
    ".onnx": ("onnxruntime", "openvino", "openvino-bf16"),
    ".xml": ("openvino", "openvino-bf16"),
    ".param": ("ncnn",),
    ".pt2": ("torch",),
    ".tflite": ("litert",),
    ".pte": ("executorch",),
}
"""The engines that run a file, by its suffix; the usual one first."""


def open_engine(file: Path, name: str, threads: int = 0) -> Run:
    """Makes a function of a network's file: of an image (N, C, H, W) in float32, what the network gives, likewise.

    Args:
        file: such as `export` and `quantize` write, or another program; in float16, too.
        name: of the engine, one of `FILE_ENGINES` of the suffix.
        threads: how many it may use; 0 leaves that to it.

    Returns:
        The function; it refuses an image of a size that the file does not take, with a `SpecError`.

    Raises:
        SpecError: for an engine that does not run this kind of file, a file that it cannot read, or too many threads.
    """
    if name not in FILE_ENGINES[file.suffix]:
        raise SpecError(f"{file.name} is run by {', '.join(FILE_ENGINES[file.suffix])}, and not by {name!r}")
    kind = _kind(name, threads)
    try:
        return _sized(kind.make(file, threads, *kind.options), file)
    except Exception as problem:  # engines raise whatever they met
        why = str(problem).strip().partition("\n")[0]
        raise SpecError(f"{name} cannot read {file} as a network in {file.suffix[1:]}: {why}") from problem


def _sized(run: Run, file: Path) -> Run:
    """The same, if the file says nothing of its input; else it looks at an image first."""
    if (wanted := about(file).shape) is None:
        return run

    def engine(x: np.ndarray) -> np.ndarray:
        if len(wanted) != x.ndim or any(size not in (None, got) for size, got in zip(wanted, x.shape)):
            raise SpecError(f"{file.name} takes {told_shape(wanted)}, but got an image of {told_shape(x.shape)}")
        return run(x)

    return engine


def _kind(name: str, threads: int) -> _Kind:
    check_threads(threads)
    if name not in ENGINES:
        raise SpecError(f"no engine is named {name!r}; there are auto, {', '.join(ENGINES)}")
    kind = ENGINES[name]
    if not find_spec(kind.package):
        raise SpecError(
            f"the engine {name!r} needs the package {kind.package}: pip install 'reparam[{kind.extra}]', or take one "
            f"of {', '.join(installed_engines())}"
        )
    return kind


def fastest_engine(net: nn.Module, colors: int, threads: int = 0) -> str:
    """The name of the engine that runs this network fastest here, of torch, onnxruntime and openvino, where installed.

    Each runs a 256x256 image a few times, and those that cannot run this network are left out; the outcome is kept in
    the cache, for this machine, the versions of the engines, and networks of the same shape.
    """
    candidates = [name for name in _TRIED if find_spec(ENGINES[name].package)]
    if len(candidates) == 1 or tensor_like(net).device.type != "cpu":
        return "torch"
    versions = {name: importlib.metadata.version(name) for name in candidates}
    shapes = [tuple(tensor.shape) for tensor in net.state_dict().values()]
    place = (platform.node(), platform.processor(), threads or torch.get_num_threads())
    record = f"engine-{_digest(str((_EXPORT, versions, shapes, place)).encode())}.json"
    if (known := _recorded(record)) in candidates:
        return known
    times = {}
    for name in candidates:
        try:
            times[name] = _seconds(make_engine(net, name, threads), colors)
        except Exception:  # engines raise whatever they met
            if name == "torch":
                raise
    fastest = min(times, key=lambda name: times[name])
    keep(record, lambda file: file.write_text(json.dumps({"engine": fastest, "seconds": times})))
    return fastest


def _recorded(record: str) -> Any:
    """The outcome of a trial before, if there is a record of one that is whole."""
    try:
        return json.loads(Path(cached(record) or os.devnull).read_bytes())["engine"]
    except (OSError, ValueError, LookupError, TypeError):  # of another version, empty, damaged, or not there
        return None


def _seconds(engine: Run, colors: int) -> float:
    x = np.random.default_rng(0).random((1, colors, 256, 256), dtype=np.float32)
    return median([seconds(partial(engine, x)) for _ in range(6)][1:])


def _name_of(net: nn.Module) -> str:
    """Of a file in the cache: after the network's content."""
    content = [str((_EXPORT, type(net), getattr(net, "options", ""), net)).encode()]
    for key, tensor in net.state_dict().items():
        raw = tensor.cpu().contiguous().flatten().view(torch.uint8)  # numpy knows no bfloat16
        content += [f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode(), raw.numpy().tobytes()]
    return f"{type(net).__name__.lower()[:99]}-{_digest(b''.join(content))}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
