"""Quantizes a network to 8 bits with images for calibration, and measures what that costs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..._tables import table
from ...deploy._exporter import targets_of
from ...errors import ExportError, SpecError
from ...files import load_checkpoint
from ...files._writing import files_beside, written
from ...fusing._fuse import made_up_image, plain_copy
from ...models._pretrained import network_file
from .._psnr import psnr_db
from .._upscale import Upscaler
from .._upscale.arrays import floats_of, planes_of
from .finetune import finetuned
from .integers import write_int8
from .pictures import Images, listed, pixels_of
from .ranges import LayerRange, layer_ranges

_BITS = {".onnx": (7, 8), ".xml": (7, 8), ".tflite": (8,)}
"""The weight bits to try, by suffix: sums of 8-bit products overflow in some programs on some processors."""

_TILE = 128
"""Height and width of the tiles that fine-tuning uses."""

Scores = tuple[float, float | None, float | None]
"""`psnr_db`, `float_db` and `int8_db` of a report."""


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize` wrote, and what 8 bits cost. `print` shows it as a table."""

    files: tuple[Path, ...]
    engine: str
    """The program that ran the file to measure it."""
    images: int
    """The number of images used for calibration and measurement."""
    per_channel: bool
    weight_bits: int
    """8; or 7 if sums of 8-bit products overflow on the processor that measured it; or 4 on request."""
    finetuned: int
    """The number of fine-tuning steps."""
    psnr_db: float
    """PSNR of images enlarged in 8 bits to those enlarged in float32: all channels, 0 to 1, the mean over images."""
    float_db: float | None
    """PSNR of the images enlarged in float32 to the targets; None without targets."""
    int8_db: float | None
    """PSNR of the images enlarged in 8 bits to the targets; None without targets."""
    layers: tuple[LayerRange, ...]

    def __str__(self) -> str:
        scales = "channel" if self.per_channel else "tensor"
        names = " and ".join(map(str, self.files))
        kind = f"INT8, weights of {self.weight_bits} bits, one scale per {scales}"
        kind += f", fine-tuned for {self.finetuned} steps" if self.finetuned else ""
        lines = [f"{names}: {kind}, {self.images} images"]
        lines += [f"{self.psnr_db:.2f} dB against float32, in {self.engine}"]
        if self.float_db is not None and self.int8_db is not None:
            lost = self.float_db - self.int8_db
            lines += [f"{self.float_db:.3f} dB in float32, {self.int8_db:.3f} dB in INT8, {lost:.3f} dB lost"]
        titles = ("spread before", "spread fused", "peak before", "peak fused")
        return "\n".join([*lines, table({"layer": "", **dict.fromkeys(titles, ".1f")}, map(astuple, self.layers))])


def quantize(
    model: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    images: Images,
    *,
    targets: Images | None = None,
    per_channel: bool = True,
    weight_bits: Literal[4, 7, 8] | None = None,
    finetune: int = 0,
    io: Literal["float32", "uint8", "int8"] = "float32",
    tile: int = 256,
) -> QuantizationReport:
    r"""Fuse a super-resolution network, export it, and quantize it to 8 bits with images for calibration.

    $$q = \mathrm{round}(x / s) + z, \qquad x \approx s\,(q - z)$$

    Each activation has a scale s and a zero point z (8 bits, unsigned). They come from the smallest and the largest
    value in a tile, averaged over all tiles. The input uses the range 0 to 1, so images of 8 bits lose nothing. Each
    output channel of a weight has its own scale (8 bits, signed, z = 0).

    Weights of 4 bits lose some dB. `finetune` recovers most of it: the fused network trains for some steps so that,
    with rounded weights, it returns what it returns in float32 on `images`. Targets are not needed for that.

    The suffix selects the program:

    - `.onnx` is for ONNX Runtime, which computes in 8 bits only if the output of a convolution is quantized as well.
    - `.xml` (and `.bin`) is for OpenVINO, which does not need that, and is more exact and faster.
    - `.tflite` is for phones and small processors. Every operator computes in integers, except those after the last
      convolution if the output is float32. If the output is integers, they stand for 0 to 1, and values beyond that are
      clipped.

    For `.onnx` and `.xml`, ONNX Runtime's static quantization puts pairs of `QuantizeLinear` and `DequantizeLinear`
    around the convolutions; activation functions, the skip and the pixel shuffle stay in float32. All three store the
    note of `export`, so that `Upscaler` can run them.

    Args:
        model: a name of `list_models(pretrained=True)`, a checkpoint, or a network, as for `Upscaler`; not changed.
        path: the file to write, in an existing directory. An existing file is replaced, unless it is the checkpoint.
        images: typical inputs for calibration: a folder of image files, or an iterable of images or files of the kinds
            that `Upscaler` accepts. A few dozen are enough.
        targets: optional: the same images in the same order, `scale` times as large, to measure PSNR against.
        per_channel: whether each output channel of a weight has its own scale, or all share one.
        weight_bits: 8; or 7, which is right on every processor, because sums of two 8-bit products overflow without
            VNNI. None measures both on the images, with the program and processor at hand, and writes the better one.
            For `.tflite`, None means 8, because LiteRT's sums do not overflow. 4 is for `.tflite` only, and halves the
            weights in the file.
        finetune: for `.tflite`, the number of training steps with rounded weights; all images are kept in memory. 300
            suit 4 bits; 8 bits gain nothing from it.
        io: for `.tflite`, the type of input and output: "float32"; "uint8", an image of 0 to 255 unchanged; or "int8",
            the same minus 128.
        tile: as for `Upscaler`; 0 for a network without a receptive radius.

    Returns:
        What was written, its PSNR, and the ranges of the weights before and after fusing.

    Raises:
        SpecError: if the suffix or `weight_bits` is not one of these, the suffix does not have an option, or `path` is
            the checkpoint; if there are no images, their number differs from that of the targets, one of them is not an
            image, or a target has the wrong size.
        ExportError: if a package is missing, or the network cannot be exported.
        FuseError: if the network cannot be fused in its present state.
        OSError: if the file cannot be written; `FileNotFoundError` if there is no image in the folder.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = quantize("repsr_m4c16_x2", f"{folder}/net.onnx", images)
        >>> report.psnr_db > 30, len(report.layers)
        (True, 6)
    """
    path = Path(path)
    _check_suffix(path, io)
    _check_bits(path, weight_bits, finetune)
    source = () if isinstance(model, nn.Module) else (network_file(model),)
    targets_of(path, source)
    net = model if isinstance(model, nn.Module) else load_checkpoint(network_file(model))
    small, large = _pairs(images, targets)
    plain = plain_copy(net, made_up_image(net)).float().cpu().requires_grad_(False)
    reference = Upscaler(plain, engine="torch", tile=tile)
    with written(path) as file:

        def write(bits: int) -> tuple[str, Scores]:
            trained = plain
            if finetune:
                small_tiles = _inputs(Upscaler(plain, engine="torch", tile=min(tile, _TILE)), small)
                trained = finetuned(plain, list(map(torch.from_numpy, small_tiles)), bits, per_channel, finetune)
            write_int8(trained, file, _inputs(reference, small), per_channel, bits, io)
            upscaler = Upscaler(file, tile=tile)
            return upscaler.engine, _scores(reference, upscaler, small, large)

        tried = {bits: write(bits) for bits in ((weight_bits,) if weight_bits else _BITS[path.suffix])}
        best = max(tried, key=lambda bits: tried[bits][1][0])
        engine, scores = tried[best]
        if best != list(tried)[-1]:
            write(best)
        files = tuple(path.with_name(one.name) for one in reversed(files_beside(file)))
    ranges = layer_ranges(net, plain)
    return QuantizationReport(files, engine, len(small), per_channel, best, finetune, *scores, ranges)


def _check_suffix(path: Path, io: str) -> None:
    if path.suffix not in _BITS:
        raise SpecError(f"8 bits can be written as .onnx, .xml (OpenVINO) or .tflite, but got {path.name!r}")
    if io not in ("float32", "uint8", "int8"):
        raise SpecError(f"io must be 'float32', 'uint8' or 'int8', but got {io!r}")
    if io != "float32" and path.suffix != ".tflite":
        raise SpecError(f"io={io!r} is an option of .tflite; input and output of {path.suffix} are float32")
    if path.suffix != ".tflite" and not find_spec("onnxruntime"):
        raise ExportError("quantizing needs onnxruntime: pip install 'reparam[onnx]'")


def _check_bits(path: Path, weight_bits: int | None, finetune: int) -> None:
    if weight_bits not in (None, 4, 7, 8):
        raise SpecError(f"weight_bits must be 4, 7, 8 or None, but got {weight_bits!r}")
    if finetune < 0:
        raise SpecError(f"finetune must be a number of steps, 0 or more, but got {finetune!r}")
    if path.suffix == ".tflite":
        return
    if weight_bits == 4:
        raise SpecError(f"weight_bits=4 is an option of .tflite; with 4 bits, {path.suffix} would compute in float32")
    if finetune:
        raise SpecError(f"finetune={finetune!r} is an option of .tflite, for 4 bits; {path.suffix} has 7 or 8 bits")


def _inputs(upscaler: Upscaler, images: Sequence[Any]) -> Iterator[np.ndarray]:
    """The inputs of the network for all images, tile by tile."""
    return (x for image in images for x in upscaler.inputs(pixels_of(image)))


def _pairs(images: Images, targets: Images | None) -> tuple[list[Any], list[Any] | None]:
    small, large = listed(images), None if targets is None else listed(targets)
    if not small:
        raise SpecError("there is no image for calibration: pass some that are typical inputs of the network")
    if large is not None and len(large) != len(small):
        raise SpecError(f"every image needs a target, but got {len(small)} images and {len(large)} targets")
    return small, large


def _scores(reference: Upscaler, upscaler: Upscaler, small: Sequence[Any], large: Sequence[Any] | None) -> Scores:
    """PSNR to float32, and of both to the targets, averaged over the images."""
    rows = []
    for index, image in enumerate(small):
        x = _floats(image)
        exact, rounded = (one(x).clip(0, 1) for one in (reference, upscaler))
        rows.append([psnr_db(rounded, exact)])
        if large is not None:
            sharp = _floats(large[index])
            if sharp.shape != exact.shape:
                raise SpecError(f"image {index} is enlarged to {exact.shape}, but its target is {sharp.shape}")
            rows[-1] += [psnr_db(exact, sharp), psnr_db(rounded, sharp)]
    means = [mean(column) for column in zip(*rows)]
    return means[0], *(means[1:] if large is not None else (None, None))


def _floats(image: Any) -> np.ndarray:
    """An image as (H, W, C) in float32, from 0 to 1."""
    return floats_of(planes_of(pixels_of(image)))[0].permute(1, 2, 0).cpu().numpy()
