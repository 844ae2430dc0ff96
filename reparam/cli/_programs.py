"""Networks for other programs: `reparam export` and `reparam quantize`."""

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
        str | None, typer.Option(metavar="HxW", help="Height and width of all images, such as 720x1280; else any.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=0, help="With --size: how many images; 0 is any. 1, if none.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; 18, if none.")] = None,
    half: Annotated[bool, typer.Option("--half", help="In float16.")] = False,
    shuffle_as_conv: Annotated[
        bool, typer.Option("--shuffle-as-conv", help="Of TFLite, where DEPTH_TO_SPACE is refused.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a checkpoint's network and write it for another program, proved equal there."""
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
    """Height and width, of such as 720x1280."""
    if size is None:
        if batch is not None:
            raise SpecError(f"--batch {batch} needs --size; without, all sizes are free")
        return None
    height, cross, width = size.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise SpecError(f"--size is height x width in pixels, such as 720x1280, but got {size!r}")
    return int(height), int(width)


def _sizes(colors: int, pixels: tuple[int, int], batch: int | None) -> dict[str, Any]:
    """What `export` is told."""
    import torch

    images = 1 if batch is None else batch
    return {"example": torch.rand(images or 1, colors, *pixels), "dynamic": False if images else "batch"}


def quantize(
    source: Network,
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, .xml (OpenVINO) or .tflite.")],
    images: Annotated[Path, typer.Option(help="Folder of images such as the network is to enlarge, to calibrate on.")],
    wrapper: Wrapper = None,
    act: Act = None,
    targets: Annotated[Path | None, typer.Option(help="Folder of the same images, large, in the same order.")] = None,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="One scale for all channels of a weight.")] = False,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            help="8; 7, right on every processor; or, of .tflite, 4. Else the better of 7 and 8 here is taken."
        ),
    ] = None,
    finetune: Annotated[
        int, typer.Option(help="Of .tflite, steps of training with rounded weights: 300 for 4 bits.")
    ] = 0,
    io: Annotated[
        str, typer.Option(help="Of .tflite, what goes in and comes out: float32, uint8 or int8.")
    ] = "float32",
    tile: Tile = 256,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a network and write it in 8 bits, calibrated on images; say what that costs."""
    from .. import sr
    from ..deploy._exporter import targets_of
    from ..models._pretrained import network_file

    some: Any = {"targets": targets, "per_channel": not per_tensor, "weight_bits": weight_bits, "finetune": finetune}
    some |= {"io": io, "tile": tile}
    targets_of(target, [network_file(source)], overwrite)
    net = load(source, wrapper, act)
    report = sr.quantize(net, target, images, **some)
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))
