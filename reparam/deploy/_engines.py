"""The engines (programs that run a network) behind one call."""

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
"""Increase this when `export` writes other files for the same network: the cache's older files are then ignored."""

_TRIED = ("torch", "onnxruntime", "openvino")
"""The engines that "auto" chooses from. Compiling takes longer than most images do, bfloat16 is less exact, and ncnn is
made for other processors."""


def _torch(model: nn.Module | Path, threads: int, compiled: bool = False) -> Run:
    net = program_in(model) if isinstance(model, Path) else copy_module(model).to(memory_format=torch.channels_last)
    run = torch.compile(net) if compiled else net
    like = tensor_like(net)

    @torch.inference_mode()
    def engine(x: Any) -> Any:
        with torch_threads(threads):
            # With one channel, `to` would leave the strides unchanged, and the network would run in the other layout.
            image = torch.empty(x.shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
            y = run(image.copy_(torch.as_tensor(x))).float().contiguous()
        return y.to(x.device) if isinstance(x, Tensor) else y.cpu().numpy()

    return engine


class _Kind:
    """How to make an engine: from the network itself, or from a file that it is exported to. torch takes either."""

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
    """List the engines whose packages are installed.

    Example:
        >>> installed_engines()[:2]
        ['torch', 'torch-compile']
    """
    return [name for name, kind in ENGINES.items() if find_spec(kind.package)]


def make_engine(net: nn.Module, engine: str, threads: int = 0) -> Run:
    """Make an engine that runs a network. All but torch run a file, which is cached if possible.

    Args:
        net: the network, fused, in eval mode.
        engine: one of `ENGINES`.
        threads: how many threads it may use; 0 lets the engine choose.

    Raises:
        SpecError: if the name is unknown, its package is not installed, or there are too many threads.
    """
    kind = _kind(engine, threads)
    if not kind.suffix:
        return kind.make(net, threads, *kind.options)
    name = _name_of(net) + kind.suffix
    if (kept := cached(name)) and holds(kept, net):  # the name does not cover forward's code, and files may be damaged
        return kind.make(kept, threads, *kind.options)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows cannot delete a file that is open
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
"""The engines that run a file, by its suffix, with the usual one first."""


def open_engine(file: Path, name: str, threads: int = 0) -> Run:
    """Open a network's file as a function from images (N, C, H, W) in float32 to the network's output in float32.

    Args:
        file: a file that `export`, `quantize` or another program wrote; a file in float16 works too.
        name: the engine, one of those that `FILE_ENGINES` lists for the suffix.
        threads: how many threads it may use; 0 lets the engine choose.

    Returns:
        The function. It raises a `SpecError` for an image of a size that the file does not accept.

    Raises:
        SpecError: if the engine does not run this kind of file or cannot read it, or there are too many threads.
    """
    if name not in FILE_ENGINES[file.suffix]:
        raise SpecError(f"{file.name} runs in {', '.join(FILE_ENGINES[file.suffix])}, but got the engine {name!r}")
    kind = _kind(name, threads)
    try:
        return _sized(kind.make(file, threads, *kind.options), file)
    except Exception as problem:  # engines raise anything
        why = str(problem).strip().partition("\n")[0]
        raise SpecError(f"{name} cannot read {file} as a network in {file.suffix[1:]}: {why}") from problem


def _sized(run: Run, file: Path) -> Run:
    """The same function, which first checks the size of an image if the file says what it accepts."""
    if (wanted := about(file).shape) is None:
        return run

    def engine(x: np.ndarray) -> np.ndarray:
        if len(wanted) != x.ndim or any(size not in (None, got) for size, got in zip(wanted, x.shape)):
            raise SpecError(f"{file.name} accepts {told_shape(wanted)}, but got an image of {told_shape(x.shape)}")
        return run(x)

    return engine


def _kind(name: str, threads: int) -> _Kind:
    check_threads(threads)
    if name not in ENGINES:
        raise SpecError(f"no engine is named {name!r}; choose one of auto, {', '.join(ENGINES)}")
    kind = ENGINES[name]
    if not find_spec(kind.package):
        raise SpecError(
            f"the engine {name!r} needs the package {kind.package}: pip install 'reparam[{kind.extra}]', or choose one "
            f"of {', '.join(installed_engines())}"
        )
    return kind


def fastest_engine(net: nn.Module, colors: int, threads: int = 0) -> str:
    """The name of the installed engine (torch, onnxruntime or openvino) that runs this network fastest here.

    Each engine runs a 256x256 image a few times. Engines that cannot run this network are left out. The outcome is
    cached for this machine, the versions of the engines, and networks of the same shape.
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
        except Exception:  # engines raise anything
            if name == "torch":
                raise
    fastest = min(times, key=lambda name: times[name])
    keep(record, lambda file: file.write_text(json.dumps({"engine": fastest, "seconds": times})))
    return fastest


def _recorded(record: str) -> Any:
    """The outcome of an earlier trial, if there is an intact record of one."""
    try:
        return json.loads(Path(cached(record) or os.devnull).read_bytes())["engine"]
    except (OSError, ValueError, LookupError, TypeError):  # from another version, empty, damaged, or missing
        return None


def _seconds(engine: Run, colors: int) -> float:
    x = np.random.default_rng(0).random((1, colors, 256, 256), dtype=np.float32)
    return median([seconds(partial(engine, x)) for _ in range(6)][1:])


def _name_of(net: nn.Module) -> str:
    """The name of a network's file in the cache: a hash of the network's content."""
    content = [str((_EXPORT, type(net), getattr(net, "options", ""), net)).encode()]
    for key, tensor in net.state_dict().items():
        raw = tensor.cpu().contiguous().flatten().view(torch.uint8)  # numpy has no bfloat16
        content += [f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode(), raw.numpy().tobytes()]
    return f"{type(net).__name__.lower()[:99]}-{_digest(b''.join(content))}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
