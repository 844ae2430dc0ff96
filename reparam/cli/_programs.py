"""The commands that write networks for other programs: `reparam export` and `reparam quantize`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError
from ._shared import Act, Json, Network, Overwrite, Tile, Wrapper, load


def export(
    source: Network,
    target: Annotated[
        Path,
        typer.Argument(
            help="File to write: .onnx, .pt2, .xml (OpenVINO), .ncnn.param, .tflite, .pte, .mlpackage, .glsl or .wgsl."
        ),
    ],
    wrapper: Wrapper = None,
    act: Act = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Fix height and width of the images, such as 720x1280. Any by default."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=0, help="With --size: the number of images; 0 for any. 1 by default.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="For ONNX: version of the operators. 18 by default.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Write float16 (ONNX, Core ML; in TFLite the weights).")] = False,
    shuffle_as_conv: Annotated[
        bool, typer.Option("--shuffle-as-conv", help="For TFLite: for programs that refuse DEPTH_TO_SPACE.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a checkpoint's network and export it for another program; the file is run there and compared."""
    from .. import deploy
    from ..deploy._exporter import targets_of
    from ..models._pretrained import network_file

    targets_of(target, [network_file(source)], overwrite)
    pixels = _pixels(size, batch)
    net = load(source, wrapper, act)
    sizes = _sizes(net.colors, pixels, batch) if pixels else {}
    report = deploy.export(net, target, opset=opset, half=half, shuffle_as_conv=shuffle_as_conv, **sizes)
    if as_json:
        known = {key: None if value != value else value for key, value in asdict(report).items()}  # JSON has no nan
        typer.echo(json.dumps(known, indent=2, default=str))
    else:
        typer.echo(str(report))


def _pixels(size: str | None, batch: int | None) -> tuple[int, int] | None:
    """Height and width from a text such as 720x1280."""
    if size is None:
        if batch is not None:
            raise SpecError(f"--batch {batch} needs --size; without it, all sizes are free")
        return None
    height, cross, width = size.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise SpecError(f"--size must be height x width in pixels, such as 720x1280, but got {size!r}")
    return int(height), int(width)


def _sizes(colors: int, pixels: tuple[int, int], batch: int | None) -> dict[str, Any]:
    """The arguments of `export` for fixed sizes."""
    import torch

    images = 1 if batch is None else batch
    return {"example": torch.rand(images or 1, colors, *pixels), "dynamic": False if images else "batch"}


def quantize(
    source: Network,
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, .xml (OpenVINO) or .tflite.")],
    images: Annotated[Path, typer.Option(help="Folder of typical input images for calibration.")],
    wrapper: Wrapper = None,
    act: Act = None,
    targets: Annotated[
        Path | None, typer.Option(help="Folder of the same images at full size, to measure against.")
    ] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="Use one scale for all channels of a weight.")
    ] = False,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the weights: 8; 7, which is safe on every processor; or 4 (.tflite only). By default the "
            "better of 7 and 8 on this machine; 8 for .tflite."
        ),
    ] = None,
    finetune: Annotated[
        int, typer.Option(help="For .tflite: training steps with rounded weights. Use 300 for 4 bits.")
    ] = 0,
    io: Annotated[str, typer.Option(help="For .tflite: type of input and output, float32, uint8 or int8.")] = "float32",
    tile: Tile = 256,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a network, quantize it to 8 bits with images for calibration, and report what that costs."""
    from .. import sr
    from ..deploy._exporter import targets_of
    from ..models._pretrained import network_file

    some: Any = {"targets": targets, "per_channel": not per_tensor, "weight_bits": weight_bits, "finetune": finetune}
    some |= {"io": io, "tile": tile}
    targets_of(target, [network_file(source)], overwrite)
    net = load(source, wrapper, act)
    report = sr.quantize(net, target, images, **some)
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))
