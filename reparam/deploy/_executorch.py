"""ExecuTorch files for phones and small devices, run by its XNNPACK backend."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ExportError, SpecError
from ._lean import lean, one_by_one
from ._runners import Run

LARGEST_SIDE = 1024
"""The largest side of an image if sizes are free: loading the file reserves memory for it."""
FREE = "free_sizes"
"""A method of the file that returns whether height and width are free. The format itself has only the largest size."""


def write_executorch(net: nn.Module, example: Tensor, dynamic: Any, file: Path, metadata: Mapping[str, str]) -> str:
    """Write a file for one image at a time, with the note as methods that return it, and say what XNNPACK runs."""
    with _without_notes():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        net, image = lean(net, one_by_one), example[:1]
        with torch.no_grad(), _ShufflesAsConvolutions():
            net(image)  # creates the weights now, so that the graph does not compute them
            program = torch.export.export(net, (image,), dynamic_shapes=_free(image) if dynamic is True else None)
        constants = {name: int(text) if text.isdecimal() else text for name, text in metadata.items()}
        constants[FREE] = int(dynamic is True)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=constants)
        left = _left(lowered.exported_program().graph_module)
        file.write_bytes(lowered.to_executorch().buffer)
    return f"XNNPACK runs all but {', '.join(left)}" if left else "XNNPACK runs all of it"


def run_executorch(file: Path, threads: int = 0) -> Run:
    """Run a file in ExecuTorch, which takes one image at a time."""
    _use(threads)
    method = _Method(_program(file).load_method("forward"))
    return lambda x: np.stack([method(image) for image in x])


def about_executorch(file: Path) -> tuple[dict[str, str], tuple[int, ...] | None]:
    """The note, and the input shape if it is fixed."""
    program = _program(file)
    note = {name: str(program.load_method(name).execute([])[0]) for name in program.method_names if name != "forward"}
    shape = program.load_method("forward").metadata.input_tensor_meta(0).sizes()
    fixed = note.pop(FREE, "0") == "0"  # for files of other programs the largest size is always accepted
    return note, tuple(shape) if fixed else None


class _Method:
    """Runs one image."""

    def __init__(self, method: Any) -> None:
        self.method = method
        _running.add(self)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about outputs smaller than the largest one
            try:
                (y,) = self.method.execute([torch.from_numpy(image[None])])
            except RuntimeError as problem:
                raise ExportError(
                    f"ExecuTorch fails for an image of {image.shape} ({problem}); a file with free sizes accepts up to "
                    f"{LARGEST_SIDE} pixels per side"
                ) from problem
        return y[0].numpy().copy()  # the next call reuses this memory


_running: weakref.WeakSet[_Method] = weakref.WeakSet()
"""All methods in use."""


def _use(threads: int) -> None:
    """Set the size of ExecuTorch's only thread pool, which invalidates everything that was loaded before."""
    with _without_notes():
        from executorch.extension.pybindings import portable_lib

    there = portable_lib._threadpool_get_thread_count()
    if threads in (0, there):
        return
    if _running:
        raise SpecError(
            f"ExecuTorch has one thread pool per process, fixed at {there} threads while a file is open, but got "
            f"threads={threads}; pass threads=0"
        )
    portable_lib._unsafe_reset_threadpool(threads)


def _program(file: Path) -> Any:
    with _without_notes():
        from executorch.runtime import Runtime

        return Runtime.get().load_program(file)


def _free(image: Tensor) -> tuple[dict[int, Any], ...]:
    names = ("height", "width", "depth")[: image.dim() - 2]
    largest = max(LARGEST_SIDE, *image.shape[2:])
    return ({axis + 2: torch.export.Dim(name, min=1, max=largest) for axis, name in enumerate(names)},)


def _left(graph: torch.fx.GraphModule) -> list[str]:
    """The operators that XNNPACK does not run."""
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    names = [name.partition(": schema")[0].removeprefix("<EdgeOpOverload: ") for name in called if "aten." in name]
    return [name for name in names if "sym_size" not in name]


class _ShufflesAsConvolutions(TorchFunctionMode):
    """Replaces pixel shuffles by transposed convolutions of zeros and ones, which XNNPACK runs at any size.

    A pixel shuffle puts channel c·s² + i·s + j of a pixel at row i and column j of its s x s pixels. So does a
    transposed convolution of stride s whose kernel is one there and zero elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute what torch would."""
        if func not in (F.pixel_shuffle, torch.pixel_shuffle):
            return func(*args, **(kwargs or {}))
        return self._shuffle(*args, **(kwargs or {}))

    def _shuffle(self, input: Tensor, upscale_factor: int) -> Tensor:
        channels = input.shape[1] // upscale_factor**2
        key = channels, upscale_factor
        if key not in self.weights:
            one = torch.eye(upscale_factor**2).reshape(-1, 1, upscale_factor, upscale_factor)
            self.weights[key] = one.repeat(channels, 1, 1, 1)
        return F.conv_transpose2d(input, self.weights[key], stride=upscale_factor, groups=channels)


@contextmanager
def _without_notes() -> Any:
    """Silence imported packages, which warn about their own deprecated calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
