"""Files of ExecuTorch, of which XNNPACK runs all: programs of phones and small machines."""

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
"""Of images, where sizes are free: memory is set aside for the largest one when the file is loaded."""
FREE = "free_sizes"
"""A method of the file, which gives whether height and width are free: the largest is all that it says itself."""


def write_executorch(net: nn.Module, example: Tensor, dynamic: Any, file: Path, metadata: Mapping[str, str]) -> str:
    """Writes a file for one image at a time, with the note as methods that give it, and says what XNNPACK runs."""
    with _without_notes():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        net, image = lean(net, one_by_one), example[:1]
        with torch.no_grad(), _ShufflesAsConvolutions():
            net(image)  # so that their weights are there, and not computed in the graph
            program = torch.export.export(net, (image,), dynamic_shapes=_free(image) if dynamic is True else None)
        constants = {name: int(text) if text.isdecimal() else text for name, text in metadata.items()}
        constants[FREE] = int(dynamic is True)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=constants)
        left = _left(lowered.exported_program().graph_module)
        file.write_bytes(lowered.to_executorch().buffer)
    return f"XNNPACK runs all but {', '.join(left)}" if left else "XNNPACK runs all of it"


def run_executorch(file: Path, threads: int = 0) -> Run:
    """A file in ExecuTorch, which takes one image at a time."""
    _use(threads)
    method = _Method(_program(file).load_method("forward"))
    return lambda x: np.stack([method(image) for image in x])


def about_executorch(file: Path) -> tuple[dict[str, str], tuple[int, ...] | None]:
    """The note, and the size of the input where it is not free."""
    program = _program(file)
    note = {name: str(program.load_method(name).execute([])[0]) for name in program.method_names if name != "forward"}
    shape = program.load_method("forward").metadata.input_tensor_meta(0).sizes()
    fixed = note.pop(FREE, "0") == "0"  # of others, the largest size is one that it takes in any case
    return note, tuple(shape) if fixed else None


class _Method:
    """What runs one image."""

    def __init__(self, method: Any) -> None:
        self.method = method
        _running.add(self)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of outputs that are smaller than the largest
            try:
                (y,) = self.method.execute([torch.from_numpy(image[None])])
            except RuntimeError as problem:
                raise ExportError(
                    f"ExecuTorch fails for an image of {image.shape} ({problem}); sizes that are free are so up to "
                    f"{LARGEST_SIDE} pixels a side"
                ) from problem
        return y[0].numpy().copy()  # the next call has the same memory


_running: weakref.WeakSet[_Method] = weakref.WeakSet()
"""All that there are."""


def _use(threads: int) -> None:
    """Sets the size of ExecuTorch's one pool of threads, which nothing that was loaded before survives."""
    with _without_notes():
        from executorch.extension.pybindings import portable_lib

    there = portable_lib._threadpool_get_thread_count()
    if threads in (0, there):
        return
    if _running:
        raise SpecError(
            f"ExecuTorch has one pool of threads for all files of a process, of {there} while one is open, but got "
            f"threads={threads}; leave it at 0"
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
    """Pixel shuffles become transposed convolutions of zeros and ones, which XNNPACK knows at any size.

    The shuffle puts channel c·s² + i·s + j of a pixel at row i and column j of its s x s pixels: so does a transposed
    convolution of stride s whose kernel is one there, and zero elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes what torch would."""
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
    """Of what is imported, which warns of deprecated calls of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
