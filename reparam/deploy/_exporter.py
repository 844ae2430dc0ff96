"""Exports a fused network to a file of another program, and checks the file before it replaces anything."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError, ReparamError, SpecError, check_model
from ..files._writing import check_targets, files_beside, written
from ..fusing._fuse import plain_copy, unwrap
from ..modules._hooks import copy_module
from ._formats import FORMATS, Dynamic, Format
from ._half import held_in_half, smooth_pictures
from ._receptive import locality
from ._runners import Run
from ._shader.trial import Trial

_BOUND, _HALF_BOUND = 1e-5, 4e-3
"""The allowed error of a file, relative to the largest value: in float32, and in float16 with its 11 bits."""
_SIZES = ((1, 1, 1), (1, 3, 5), (2, 8, 9), (1, 17, 4), (1, 4, 33))
"""Batch, height and width of the inputs on which a file is tried."""


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote, and how exact it is. `print` shows it as a line."""

    files: tuple[Path, ...]
    format: str
    engine: str
    """The program that ran the file to check it."""
    shapes: tuple[tuple[int, ...], ...]
    """The shapes of the inputs on which it was checked."""
    error: float
    """The largest difference from the fused network in torch, in float32, relative to the largest value of its output;
    nan for a shader that was not run."""
    bound: float = _BOUND
    """The limit for `error`: 1e-5, or 4e-3 in float16."""
    peak: float | None = None
    """In float16: the largest value inside the network, on the example and on test pictures. float16 ends at 65504."""
    rescaled: tuple[str, ...] = ()
    """The layers whose weights were multiplied by powers of two to stay in that range."""
    remark: str = ""
    """What else to know about the file, such as which parts ran where."""
    psnr_db: float | None = None
    """PSNR of a shader's picture to torch's, the lowest over the shapes. It must reach 65, instead of `bound`."""
    unchecked: str = ""
    """Why a shader was not run, if nothing here could run it."""

    def __str__(self) -> str:
        names, precision = " and ".join(map(str, self.files)), "" if self.peak is None else " in float16"
        found = f"differs by {self.error:.0e}" if self.psnr_db is None else f"{self.psnr_db:.1f} dB to torch"
        done = f"{found} in {self.engine} ({len(self.shapes)} shapes)"
        if self.unchecked:
            done = f"NOT RUN: {self.unchecked}"
        lines = [f"{names}: {self.format}{precision}, {done}"]
        if self.peak is not None:
            scaled = f", after rescaling {', '.join(self.rescaled)}" if self.rescaled else ""
            lines[0] += f" (allowed: {self.bound:.0e}); the largest value inside is {self.peak:.3g}{scaled}"
        return "\n".join([*lines, *([self.remark] if self.remark else [])])


@torch.inference_mode(False)  # a caller may be in inference mode, in which torch shows other operations
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example: Tensor | None = None,
    dynamic: Dynamic = True,
    opset: int | None = None,
    half: bool = False,
    shuffle_as_conv: bool = False,
) -> ExportReport:
    r"""Export a network for inference in another program, in float32. It is fused first, so no branch is exported.

    The suffix selects the format:

    | suffix | format | needs |
    |---|---|---|
    | `.onnx` | ONNX, opset 18 by default, by torch's exporter | `reparam[onnx]` |
    | `.pt2` | `torch.export` | |
    | `.xml` (and `.bin`) | OpenVINO IR, by OpenVINO's converter from ONNX | `reparam[openvino]` |
    | `.ncnn.param` (and `.ncnn.bin`) | ncnn, by pnnx | `reparam[ncnn]` |
    | `.tflite` | TFLite, whose runtime is now called LiteRT; written by this library | `reparam[litert]` |
    | `.pte` | ExecuTorch, with XNNPACK | `reparam[executorch]` |
    | `.mlpackage` (a folder) | Core ML, by coremltools | `reparam[coreml]` |
    | `.glsl` | a user shader for mpv, libplacebo and ffmpeg | |
    | `.wgsl` | a module for WebGPU | |

    **Checks.** If the network runs in float64, fusing is checked on the example (see `fuse`). Then the new file runs on
    images of awkward sizes, in ONNX Runtime (ONNX's reference if that is not installed), OpenVINO, ncnn, LiteRT or
    ExecuTorch. It must satisfy $\max|y - y_\text{torch}| \le 10^{-5} \max|y_\text{torch}|$. Only then is it moved into
    place, where it replaces an existing file as `torch.save` does; otherwise the existing file stays as it was. Core ML
    runs only on Apple's devices, so its package is read back and computed by torch instead.

    A user shader is run by ffmpeg with libplacebo and a Vulkan driver, and a WebGPU module by the package wgpu, on
    three pictures. The result must have a PSNR of at least 65 dB to torch's, because values between passes are float16.
    If these programs are missing, the file is written anyway, and the report says that it was not run.

    **Note.** Every format except ncnn stores a note in the file: `scale`, `colors`, `radius` (receptive radius in
    pixels of the input, if the network has one), `period` (tiles start at multiples of it; 1 for convolutions), `range`
    ("0 to 1"), `order` ("RGB" or "Y"), and `reparam`, a JSON of class, options and version. `read_note` reads it. It is
    stored as metadata in ONNX and Core ML, as `rt_info` under "reparam" in OpenVINO, as extra files in `torch.export`,
    as JSON in TFLite's metadata, as methods in ExecuTorch, and as comments in shaders.

    **TFLite** has the axes (N, H, W, C). This library writes the file itself and has operators for convolutions,
    pooling, padding, upsampling, elementwise functions, arithmetic, and everything that moves pixels. A network that
    computes anything else is refused, and the layer is named.

    **Skip before the shuffle.** In ONNX, OpenVINO and TFLite, networks of this library add the nearest-neighbor skip
    before the pixel shuffle (each channel s² times) instead of after it. The sums are the same, with fewer passes over
    the large image.

    **float16** ends at 65504. With `half`, the largest value of every layer is measured first, on the example and, for
    a network with `colors`, on test pictures (soft, with hard edges, white, black). A layer above 1/16 of 65504 is
    divided by a power of two, and the factor is passed on through PReLUs, ReLUs, sums and shuffles. That changes no
    digit of the result.

    Args:
        model: any network with one input and one output; it is not changed.
        path: the file to write, in an existing directory.
        example: an input (N, C, ...). Only networks without the attribute `colors` need it.
        dynamic: whether batch, height and width of the input are free. False fixes them to those of the example;
            "batch" leaves only the number of images free.
        opset: for ONNX, the version of the operators, if a program needs an older or newer one than 18.
        half: for ONNX and Core ML, whether weights, input and output are float16; for TFLite, whether the weights are.
            The file may then differ by 4e-3.
        shuffle_as_conv: for TFLite, whether to write pixel shuffles as transposed convolutions of zeros and ones, which
            compute the same, for programs that refuse `DEPTH_TO_SPACE`.

    Returns:
        What was written, and its error.

    Raises:
        SpecError: if the suffix is unknown, the format does not have an option, or an example is needed.
        ExportError: if a package is missing; if the network cannot be exported (for example because it returns more
            than one tensor); if the file does not run or is not exact; or if a layer exceeds the range of float16.
        FuseError: if the network cannot be fused in its present state, or the fused network computes something else.
        OSError: if the file cannot be written; `FileNotFoundError` if the directory does not exist.

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
    check_model(model)
    path = Path(path)
    kind = format_of(path)
    options = _chosen(kind, opset=opset, half=half, shuffle_as_conv=shuffle_as_conv)
    targets_of(path)
    shapes = _shapes(unwrap(model), example, dynamic)
    first = torch.rand(2, *shapes[0][1:-2], 8, 9) if example is None else example.detach().float().cpu()
    net = plain_copy(model, first).float().cpu().requires_grad_(False)
    if dynamic and len(first) == 1:  # torch.export would treat a batch of one as a constant
        first = torch.cat([first, first])
    _output(net, first)  # if it fails, this error is clearer than a converter's
    held = held_in_half(net, _pictures(net, example)) if half else None
    bound = _HALF_BOUND if half else _BOUND
    with written(path) as file:
        remark = write_as(kind, held.net if held else net, first, dynamic, file, **options)
        if kind.tried:
            found = kind.tried(file, net)
        else:
            engine, error = _check(kind, file, net, shapes, bound)
            found = Trial(engine, shapes, error)
        files = tuple(path.with_name(one.name) for one in reversed(files_beside(file)))
    peak, rescaled = (held.peak, held.rescaled) if held else (None, ())
    report = ExportReport(files, kind.name, found.engine, found.shapes, found.error, bound, peak, rescaled, remark)
    return replace(report, psnr_db=found.psnr_db, unchecked=found.unchecked)


def holds(file: Path, net: nn.Module) -> bool:
    """Whether an exported file computes what a network does, tried on one small image."""
    net = copy_module(net).float().cpu()
    try:
        _check(format_of(file), file, net, _shapes(net, None, dynamic=True)[2:3])
    except ExportError:
        return False
    return True


def format_of(path: Path) -> Format:
    """The format that the suffix selects."""
    kind = next((kind for kind in FORMATS if path.name.endswith(kind.suffixes[0])), None)
    if kind is None:
        known = ", ".join(f"{kind.suffixes[0]} ({kind.name})" for kind in FORMATS)
        raise SpecError(f"the suffix selects the export format, but got {path.name!r}; known are {known}")
    return kind


def _chosen(kind: Format, **given: Any) -> dict[str, Any]:
    """The options that were given, checked against those of the format."""
    chosen = {name: value for name, value in given.items() if value not in (None, False)}
    if wrong := next((name for name in chosen if name not in kind.options), None):
        having = [other.suffixes[0] for other in FORMATS if wrong in other.options]
        raise SpecError(
            f"{wrong}={chosen[wrong]!r} is an option of {' and '.join(having) or 'no format'}, but the format is "
            f"{kind.name} ({kind.suffixes[0]})"
        )
    return chosen


def _pictures(net: nn.Module, example: Tensor | None) -> list[Tensor]:
    """The images on which the range of float16 is checked."""
    colors: Any = getattr(net, "colors", None)
    given = [] if example is None else [example.detach().float().cpu()]
    if not isinstance(colors, int):
        return given
    return given + list(smooth_pictures(colors, *(given[0].shape[2:] if given else (48, 48))).split(1))


def targets_of(path: Path, sources: Iterable[Path] = (), overwrite: bool = True) -> tuple[Path, ...]:
    """The files that will be written, the requested one first, after checking that they can be."""
    kind = format_of(path)
    if missing := [package for package in kind.packages if not find_spec(package)]:
        raise ExportError(f"{kind.name} needs {' and '.join(missing)}: pip install 'reparam[{kind.extra}]'")
    stem = path.name.removesuffix(kind.suffixes[0])
    files = tuple(path.with_name(stem + suffix) for suffix in kind.suffixes)
    check_targets(files, sources, overwrite)
    return files


def _shapes(net: nn.Module, example: Tensor | None, dynamic: Dynamic) -> tuple[tuple[int, ...], ...]:
    """The shapes of the inputs on which the file is tried."""
    if dynamic not in (True, False, "batch"):
        raise SpecError(f"dynamic must be True, False or 'batch', but got {dynamic!r}")
    colors: Any = getattr(net, "colors", None)
    if example is None and not isinstance(colors, int):
        raise SpecError(f"{type(net).__name__} does not say what its input is: pass example=, an input that it accepts")
    if example is None and dynamic is not True:
        raise SpecError(f"dynamic={dynamic!r} fixes the sizes to those of an example: pass example=, an input")
    if example is None:
        return tuple((batch, colors, *size) for batch, *size in _SIZES)
    shape = tuple(example.shape)
    if not dynamic or len(shape) < 3:
        return (shape,)
    if dynamic == "batch":
        return shape, (shape[0] + 1, *shape[1:])
    wider = tuple(size + 1 + index for index, size in enumerate(shape[2:]))
    return shape, (shape[0] + 1, *shape[1:]), (*shape[:2], *wider)


def metadata_of(net: nn.Module) -> dict[str, str]:
    """The note for a file."""
    from .. import __version__

    note: dict[str, Any] = {"version": __version__, "network": type(net).__name__}
    note["options"] = getattr(net, "options", {})
    metadata = {"reparam": json.dumps(note, default=str)}
    colors, scale = getattr(net, "colors", None), getattr(net, "scale", None)
    if isinstance(colors, int) and isinstance(scale, int):
        metadata |= {"scale": str(scale), "colors": str(colors)}
        metadata |= {"range": "0 to 1", "order": "RGB" if colors == 3 else "Y"}
        with contextlib.suppress(Exception):  # without a radius, or not for images of the tried sizes
            metadata |= {key: str(value) for key, value in locality(net, colors)._asdict().items()}
    return metadata


def write_as(kind: Format, net: nn.Module, first: Tensor, dynamic: Dynamic, file: Path, **options: Any) -> str:
    """Write a file and return the remark on it. An error names the network that cannot be written."""
    try:
        return kind.write(net, first, dynamic, file, metadata_of(net), **options) or ""
    except ReparamError:
        raise
    except Exception as problem:  # exporters raise anything
        advice = "; if you need only one size, try dynamic=False" if dynamic is True else ""
        raise ExportError(f"cannot export {type(net).__name__} as {kind.name}{advice}: {problem}") from problem


def _check(
    kind: Format, file: Path, net: nn.Module, shapes: Iterable[tuple[int, ...]], bound: float = _BOUND
) -> tuple[str, float]:
    """The name of the program that runs the file, and the file's largest error."""
    try:
        engine, run = kind.read(file)
    except Exception as problem:  # engines raise anything
        raise ExportError(f"the exported {kind.name} file cannot be loaded: {problem}") from problem
    generator = torch.Generator().manual_seed(0)
    return engine, max(_error(engine, run, net, torch.rand(shape, generator=generator), bound) for shape in shapes)


def _error(engine: str, run: Run, net: nn.Module, x: Tensor, bound: float) -> float:
    """The error for one input, relative to the largest value of the output; absolute if the output is all zero."""
    shape = tuple(x.shape)
    wanted = _output(net, x).numpy()
    try:
        got = run(x.numpy())
    except Exception as problem:
        raise ExportError(f"{engine} fails for an input of {shape}: {problem}") from problem
    if got.shape != wanted.shape:
        raise ExportError(f"{engine} returns {got.shape} for an input of {shape}, but torch returns {wanted.shape}")
    error = float(np.abs(got - wanted).max() / (np.abs(wanted).max() or 1.0))
    if not error <= bound:
        raise ExportError(
            f"{engine} differs by {error:.1e} of the largest value for an input of {shape}, but rounding explains at "
            f"most {bound:.0e}"
        )
    return error


@torch.inference_mode()
def _output(net: nn.Module, x: Tensor) -> Tensor:
    name, shape = type(net).__name__, tuple(x.shape)
    try:
        y = net(x.clone())  # the network may change its input
    except Exception as problem:
        advice = "pass example=, an input that it accepts"
        raise ExportError(f"{name} itself fails for an input of {shape}: {problem}; {advice}") from problem
    if not isinstance(y, Tensor):
        raise ExportError(f"{name} returns a {type(y).__name__}: export a module whose output is one tensor")
    return y
