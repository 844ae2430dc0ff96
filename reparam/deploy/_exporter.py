"""A network, fused, in a file of another program, proved before it is in place."""

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

from ..errors import ExportError, ReparamError, SpecError
from ..files._writing import check_targets, files_beside, written
from ..fusing._fuse import plain_copy, unwrap
from ..modules._hooks import copy_module
from ._formats import FORMATS, Dynamic, Format
from ._half import held_in_half, smooth_pictures
from ._receptive import locality
from ._runners import Run
from ._shader.trial import Trial

_BOUND, _HALF_BOUND = 1e-5, 4e-3
"""What a file may differ by, over the largest value: in float32, and where it computes in float16, of 11 bits."""
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
    """The largest difference from the fused network in torch, in float32, over the largest value of its output; nan for
    a shader that was not run."""
    bound: float = _BOUND
    """What that had to stay below: 1e-5, or 4e-3 in float16."""
    peak: float | None = None
    """In float16, the largest value inside on the example and on test pictures: 65504 is the largest that there is."""
    rescaled: tuple[str, ...] = ()
    """The layers whose numbers were multiplied by powers of two for that."""
    remark: str = ""
    """What else there is to know of the file: what of it ran where."""
    psnr_db: float | None = None
    """Of what a shader shows, to what torch gives: the smallest of the shapes. 65 is asked, in place of `bound`."""
    unchecked: str = ""
    """Why nothing ran a shader, if nothing here could."""

    def __str__(self) -> str:
        names, precision = " and ".join(map(str, self.files)), "" if self.peak is None else " in float16"
        found = f"differs by {self.error:.0e}" if self.psnr_db is None else f"{self.psnr_db:.1f} dB to torch"
        done = f"{found} in {self.engine} ({len(self.shapes)} shapes)"
        if self.unchecked:
            done = f"NOT RUN: {self.unchecked}"
        lines = [f"{names}: {self.format}{precision}, {done}"]
        if self.peak is not None:
            scaled = f", after rescaling {', '.join(self.rescaled)}" if self.rescaled else ""
            lines[0] += f", where {self.bound:.0e} is allowed; the largest value inside is {self.peak:.3g}{scaled}"
        return "\n".join([*lines, *([self.remark] if self.remark else [])])


@torch.inference_mode(False)  # which a caller may be in, and in which torch shows other operations
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
    r"""Writes a network for inference elsewhere: fused first, so that no branch is ever exported, in float32.

    The suffix says for which program:

    | suffix | program | needs |
    |---|---|---|
    | `.onnx` | ONNX, opset 18 unless told otherwise, by torch's exporter | `reparam[onnx]` |
    | `.pt2` | `torch.export` | |
    | `.xml` (and `.bin`) | OpenVINO IR, by OpenVINO's converter from ONNX | `reparam[openvino]` |
    | `.ncnn.param` (and `.ncnn.bin`) | ncnn, by pnnx | `reparam[ncnn]` |
    | `.tflite` | TFLite, whose runtime is called LiteRT now; written here | `reparam[litert]` |
    | `.pte` | ExecuTorch, with XNNPACK | `reparam[executorch]` |
    | `.mlpackage` (a folder) | Core ML, by coremltools | `reparam[coreml]` |
    | `.glsl` | a user shader for mpv, libplacebo and ffmpeg | |
    | `.wgsl` | a module for WebGPU | |

    The network is fused with proof, on the example, where it runs in float64 (see `fuse`).

    Before it is in place, the file is run (by ONNX Runtime if installed, else ONNX's reference; OpenVINO; ncnn; LiteRT;
    ExecuTorch) on images of awkward sizes, and must give $\max|y - y_\text{torch}| \le 10^{-5} \max|y_\text{torch}|$.
    If it does not, an existing file stays as it was; if it does, that is replaced, as by `torch.save`. Core ML runs on
    Apple's machines only, and is run nowhere here: what is in its package is read back, and computed by torch.

    A user shader is run by ffmpeg, with libplacebo and a Vulkan driver, a module for WebGPU by the package wgpu, on
    three pictures, and must show them at 65 dB or more to what torch gives, as numbers between the passes are float16.
    Where these are missing the file is written all the same, and the report says that it was not run.

    All but ncnn's files hold a note: `scale`, `colors`, `radius` (the receptive one, in pixels of the input, if the
    network has one), `period` (tiles begin on its multiples; 1 for convolutions), `range` ("0 to 1"), `order` ("RGB" or
    "Y"), and `reparam`, a JSON of class, options and version: as metadata of ONNX, as `rt_info` under "reparam" of
    OpenVINO, as extra files of `torch.export`, as JSON in the metadata of TFLite, as methods of ExecuTorch, as metadata
    of Core ML, as comments in shaders.

    TFLite has the axes (N, H, W, C). It is written here, and not converted: operators for convolutions, pooling,
    borders, enlarging, functions, arithmetic and whatever moves pixels; a network that computes something else is
    refused, by the name of the layer.

    In ONNX, OpenVINO and TFLite, networks of this library add the image enlarged by nearest neighbour before the pixel
    shuffle, s² times for each channel, and not after it: the same numbers, for fewer passes over the large image.

    In float16, no number may pass 65504. So the largest value that any layer gives is measured first, on the example
    and, of a network with `colors`, on pictures that are soft, of hard edges, white and black; what passes a sixteenth
    of 65504 is divided by a power of two through PReLUs, ReLUs, sums and shuffles, which changes no digit.

    Args:
        model: any network of one input and one output; it is not changed.
        path: where to; the directory must be there.
        example: an input (N, C, ...), which only networks without `colors` need.
        dynamic: whether batch, height and width of the input are free; if not, they are those of the example. "batch"
            leaves how many images there are free, and nothing else.
        opset: of ONNX, the version of the operators, for programs that want an older or a newer one than 18.
        half: of ONNX and Core ML, whether weights, input and output are float16, of TFLite, whether weights are; the
            file may then differ by 4e-3.
        shuffle_as_conv: of TFLite, whether pixel shuffles are transposed convolutions of zeros and ones, which compute
            the same, for programs that refuse `DEPTH_TO_SPACE`.

    Raises:
        SpecError: for an unknown suffix, an option that its format does not have, or a missing example.
        ExportError: if a package is missing, the network cannot be exported (it gives more than one tensor, say), the
            file does not run or is not exact, or a layer gives what float16 cannot hold.
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
    options = _chosen(kind, opset=opset, half=half, shuffle_as_conv=shuffle_as_conv)
    targets_of(path)
    shapes = _shapes(unwrap(model), example, dynamic)
    first = torch.rand(2, *shapes[0][1:-2], 8, 9) if example is None else example.detach().float().cpu()
    net = plain_copy(model, first).float().cpu().requires_grad_(False)
    if dynamic and len(first) == 1:  # which torch.export would take for a constant
        first = torch.cat([first, first])
    _output(net, first)  # what it cannot do is said here, and not by a converter
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
    """Whether a file that was exported before computes what a network does, as far as one small image tells."""
    net = copy_module(net).float().cpu()
    try:
        _check(format_of(file), file, net, _shapes(net, None, dynamic=True)[2:3])
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


def _chosen(kind: Format, **given: Any) -> dict[str, Any]:
    """The options that were chosen, if the format has them."""
    chosen = {name: value for name, value in given.items() if value not in (None, False)}
    if wrong := next((name for name in chosen if name not in kind.options), None):
        having = [other.suffixes[0] for other in FORMATS if wrong in other.options]
        raise SpecError(
            f"{wrong}={chosen[wrong]!r} is an option of {' and '.join(having) or 'no format'}, but {kind.name} "
            f"({kind.suffixes[0]}) was asked for"
        )
    return chosen


def _pictures(net: nn.Module, example: Tensor | None) -> list[Tensor]:
    """What float16 is to hold the network on."""
    colors: Any = getattr(net, "colors", None)
    given = [] if example is None else [example.detach().float().cpu()]
    if not isinstance(colors, int):
        return given
    return given + list(smooth_pictures(colors, *(given[0].shape[2:] if given else (48, 48))).split(1))


def targets_of(path: Path, sources: Iterable[Path] = (), overwrite: bool = True) -> tuple[Path, ...]:
    """The files that will be in place, the one that was asked for first, if nothing stands in the way of them."""
    kind = format_of(path)
    if missing := [package for package in kind.packages if not find_spec(package)]:
        raise ExportError(f"{kind.name} needs {' and '.join(missing)}: pip install 'reparam[{kind.extra}]'")
    stem = path.name.removesuffix(kind.suffixes[0])
    files = tuple(path.with_name(stem + suffix) for suffix in kind.suffixes)
    check_targets(files, sources, overwrite)
    return files


def _shapes(net: nn.Module, example: Tensor | None, dynamic: Dynamic) -> tuple[tuple[int, ...], ...]:
    """What the file is tried on."""
    if dynamic not in (True, False, "batch"):
        raise SpecError(f"dynamic must be True, False or 'batch', but got {dynamic!r}")
    colors: Any = getattr(net, "colors", None)
    if example is None and not isinstance(colors, int):
        raise SpecError(f"{type(net).__name__} does not say its input: pass example=, a tensor such as it takes")
    if example is None and dynamic is not True:
        raise SpecError(f"dynamic={dynamic!r} fixes the sizes to those of an example: pass example=, a tensor of them")
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


def write_as(kind: Format, net: nn.Module, first: Tensor, dynamic: Dynamic, file: Path, **options: Any) -> str:
    """Writes a file and gives the remark on it, or says what the network is that cannot be written."""
    try:
        return kind.write(net, first, dynamic, file, metadata_of(net), **options) or ""
    except ReparamError:
        raise
    except Exception as problem:  # exporters raise whatever they met
        advice = "; if only one size is needed, dynamic=False may do" if dynamic is True else ""
        raise ExportError(f"cannot export {type(net).__name__} as {kind.name}{advice}: {problem}") from problem


def _check(
    kind: Format, file: Path, net: nn.Module, shapes: Iterable[tuple[int, ...]], bound: float = _BOUND
) -> tuple[str, float]:
    """The name of the program that runs the file, and the largest error in it."""
    try:
        engine, run = kind.read(file)
    except Exception as problem:  # engines raise whatever they met
        raise ExportError(f"what was exported as {kind.name} cannot be loaded: {problem}") from problem
    generator = torch.Generator().manual_seed(0)
    return engine, max(_error(engine, run, net, torch.rand(shape, generator=generator), bound) for shape in shapes)


def _error(engine: str, run: Run, net: nn.Module, x: Tensor, bound: float) -> float:
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
    if not error <= bound:
        raise ExportError(
            f"{engine} differs by {error:.1e} of the largest value for an input of {shape}, where rounding does "
            f"{bound:.0e} at most"
        )
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
