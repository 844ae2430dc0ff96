"""A network, fused, in a file of another program, proved before it is in place."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError, ReparamError, SpecError
from ..files._writing import check_targets, files_beside, written
from ..fusing._fuse import plain_copy, unwrap
from ..modules._hooks import copy_module
from ._formats import FORMATS, Format
from ._receptive import locality
from ._runners import Run
from ._shader.trial import Trial

_TOLERANCE = 1e-5
_SIZES = ((1, 1, 1), (1, 3, 5), (2, 8, 9), (1, 17, 4), (1, 4, 33))
"""Batch, height and width of the inputs that a file is tried on."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how exact it is; printed, it is a line."""

    files: tuple[Path, ...]
    format: str
    engine: str
    """The program that ran the file to check it."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the inputs that it was checked on."""
    error: float
    """The largest difference from the fused network in torch, over the largest value of its output."""
    psnr_db: float | None = None
    """Of what a player shows, to what torch gives: the smallest of the shapes. Only a player's file has it."""
    unchecked: str = ""
    """Why nothing ran the file, if nothing here could."""

    def __str__(self) -> str:
        names = " and ".join(map(str, self.files))
        if self.unchecked:
            return f"{names}: {self.format}, NOT RUN: {self.unchecked}"
        found = f"differs by {self.error:.0e}" if self.psnr_db is None else f"{self.psnr_db:.1f} dB to torch"
        return f"{names}: {self.format}, {found} in {self.engine} ({len(self.shapes)} shapes)"


def export(
    model: nn.Module, path: str | os.PathLike[str], *, example: Tensor | None = None, dynamic: bool = True
) -> ExportReport:
    r"""Writes a network for inference elsewhere: fused first, so that no branch is ever exported, in float32.

    The suffix says for which program:

    | suffix | program | needs |
    |---|---|---|
    | `.onnx` | ONNX, opset 18, by torch's exporter | `reparam[onnx]` |
    | `.pt2` | `torch.export` | |
    | `.xml` (and `.bin`) | OpenVINO IR, by OpenVINO's converter from ONNX | `reparam[openvino]` |
    | `.ncnn.param` (and `.ncnn.bin`) | ncnn, by pnnx | `reparam[ncnn]` |
    | `.glsl` | a user shader for mpv, libplacebo and ffmpeg | |

    The network is fused with proof, on the example, where it runs in float64 (see `fuse`).

    Before it is in place, the file is run (by ONNX Runtime if installed, else ONNX's reference; by OpenVINO; by ncnn)
    on images of awkward sizes, and must give $\max|y - y_\text{torch}| \le 10^{-5} \max|y_\text{torch}|$. If it does
    not, an existing file stays as it was; if it does, that is replaced, as by `torch.save`.

    A user shader is run by ffmpeg, with a Vulkan driver and libplacebo, on three pictures, and must show them at 65 dB
    or more to what torch gives, as numbers between its passes are float16. Where there is no such ffmpeg it is written
    all the same, and the report says that it was not run.

    All but ncnn's files hold a note: `scale`, `colors`, `radius` (the receptive one, in pixels of the input, if the
    network has one), `period` (tiles begin on its multiples; 1 for convolutions), `range` ("0 to 1"), `order` ("RGB" or
    "Y"), and `reparam`, a JSON of class, options and version: as metadata of ONNX, as `rt_info` under "reparam" of
    OpenVINO, as extra files of `torch.export`, in comments of a shader.

    In ONNX and OpenVINO, networks of this library add the image enlarged by nearest neighbour before the pixel shuffle,
    s² times for each channel, and not after it: the same numbers, for fewer passes over the large image.

    Args:
        model: any network of one input and one output; it is not changed.
        path: where to; the directory must be there.
        example: an input (N, C, ...), which only networks without `colors` need.
        dynamic: whether batch, height and width of the input are free; if not, they are those of the example.

    Raises:
        SpecError: for an unknown suffix, or a missing example.
        ExportError: if a package is missing, the network cannot be exported (it gives more than one tensor, say), or
            the file does not run or is not exact.
        FuseError: if the network cannot be fused as it is, or what it is fused into is another function.
        OSError: if nothing can be written there: `FileNotFoundError` where there is no such directory.

    Example:
        >>> import tempfile
        >>> from reparam import create_model
        >>> net = create_model("repsr_m1c4_x2")
        >>> _ = net(torch.rand(2, 3, 8, 8))  # training
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(net.eval(), f"{folder}/net.pt2")
        >>> report.engine, report.error < 1e-5
        ('torch', True)
    """
    path = Path(path)
    kind = format_of(path)
    targets_of(path)
    shapes = _shapes(unwrap(model), example, dynamic)
    first = torch.rand(2, *shapes[0][1:-2], 8, 9) if example is None else example.detach().float().cpu()
    net = plain_copy(model, first).float().cpu().requires_grad_(False)
    if dynamic and len(first) == 1:  # which torch.export would take for a constant
        first = torch.cat([first, first])
    _output(net, first)  # what it cannot do is said here, and not by a converter
    with written(path) as file:
        write_as(kind, net, first, dynamic, file)
        if kind.tried:
            found = kind.tried(file, net)
        else:
            engine, error = _check(kind, file, net, shapes)
            found = Trial(engine, shapes, error)
        files = tuple(path.with_name(one.name) for one in reversed(files_beside(file)))
    return ExportReport(files, kind.name, *found)


def holds(file: Path, net: nn.Module) -> bool:
    """Whether a file that was exported before computes what a network does, as far as one small image tells."""
    net = copy_module(net).float().cpu()
    try:
        _check(format_of(file), file, net, _shapes(net, None, dynamic=False))
    except ExportError:
        return False
    return True


def format_of(path: Path) -> Format:
    """The one that the suffix asks for."""
    kind = next((kind for kind in FORMATS if path.name.endswith(kind.suffixes[0])), None)
    if kind is None:
        known = ", ".join(f"{kind.suffixes[0]} ({kind.name})" for kind in FORMATS)
        raise SpecError(f"the suffix says in which format to export, but got {path.name!r}; there are {known}")
    return kind


def targets_of(path: Path, sources: Iterable[Path] = (), overwrite: bool = True) -> tuple[Path, ...]:
    """The files that will be in place, the one that was asked for first, if nothing stands in the way of them."""
    kind = format_of(path)
    if missing := [package for package in kind.packages if not find_spec(package)]:
        raise ExportError(f"{kind.name} needs {' and '.join(missing)}: pip install 'reparam[{kind.extra}]'")
    stem = path.name.removesuffix(kind.suffixes[0])
    files = tuple(path.with_name(stem + suffix) for suffix in kind.suffixes)
    check_targets(files, sources, overwrite)
    return files


def _shapes(net: nn.Module, example: Tensor | None, dynamic: bool) -> tuple[tuple[int, ...], ...]:
    """What the file is tried on."""
    colors: Any = getattr(net, "colors", None)
    if example is None and not isinstance(colors, int):
        raise SpecError(f"{type(net).__name__} does not say its input: pass example=, a tensor such as it takes")
    if example is None:
        return tuple((batch, colors, *size) for batch, *size in (_SIZES if dynamic else [(2, 8, 9)]))
    shape = tuple(example.shape)
    if not dynamic or len(shape) < 3:
        return (shape,)
    wider = tuple(size + 1 + index for index, size in enumerate(shape[2:]))
    return shape, (shape[0] + 1, *shape[1:]), (*shape[:2], *wider)


def metadata_of(net: nn.Module) -> dict[str, str]:
    """The note that a file holds."""
    from .. import __version__

    note: dict[str, Any] = {"version": __version__, "network": type(net).__name__}
    note["options"] = getattr(net, "options", {})
    metadata = {"reparam": json.dumps(note, default=str)}
    colors, scale = getattr(net, "colors", None), getattr(net, "scale", None)
    if isinstance(colors, int) and isinstance(scale, int):
        metadata |= {"scale": str(scale), "colors": str(colors)}
        metadata |= {"range": "0 to 1", "order": "RGB" if colors == 3 else "Y"}
        with contextlib.suppress(Exception):  # it has none, or takes no image of the size that this is measured on
            metadata |= {key: str(value) for key, value in locality(net, colors)._asdict().items()}
    return metadata


def write_as(kind: Format, net: nn.Module, first: Tensor, dynamic: bool, file: Path) -> None:
    """Writes a file, or says what the network is that cannot be written."""
    try:
        kind.write(net, first, dynamic, file, metadata_of(net))
    except ReparamError:
        raise
    except Exception as problem:  # exporters raise whatever they met
        advice = "; if only one size is needed, dynamic=False may do" if dynamic else ""
        raise ExportError(f"cannot export {type(net).__name__} as {kind.name}{advice}: {problem}") from problem


def _check(kind: Format, file: Path, net: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> tuple[str, float]:
    """The name of the program that runs the file, and the largest error in it."""
    try:
        engine, run = kind.read(file)
    except Exception as problem:  # engines raise whatever they met
        raise ExportError(f"what was exported as {kind.name} cannot be loaded: {problem}") from problem
    generator = torch.Generator().manual_seed(0)
    return engine, max(_error(engine, run, net, torch.rand(shape, generator=generator)) for shape in shapes)


def _error(engine: str, run: Run, net: nn.Module, x: Tensor) -> float:
    """Of one input, over the largest value of the output; absolute where all of that is zero."""
    shape = tuple(x.shape)
    wanted = _output(net, x).numpy()
    try:
        got = run(x.numpy())
    except Exception as problem:
        raise ExportError(f"{engine} fails for an input of {shape}: {problem}") from problem
    if got.shape != wanted.shape:
        raise ExportError(f"{engine} gives {got.shape} for an input of {shape}, where torch gives {wanted.shape}")
    error = float(np.abs(got - wanted).max() / (np.abs(wanted).max() or 1.0))
    if not error <= _TOLERANCE:
        raise ExportError(f"{engine} differs by {error:.1e} of the largest value for an input of {shape}")
    return error


@torch.inference_mode()
def _output(net: nn.Module, x: Tensor) -> Tensor:
    name, shape = type(net).__name__, tuple(x.shape)
    try:
        y = net(x.clone())  # which it may change
    except Exception as problem:
        advice = "pass example=, an input that it takes"
        raise ExportError(f"{name} itself fails for an input of {shape}: {problem}; {advice}") from problem
    if not isinstance(y, Tensor):
        raise ExportError(f"{name} gives a {type(y).__name__}: export a module whose output is one tensor")
    return y
