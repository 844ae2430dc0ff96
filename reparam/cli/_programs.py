"""Networks for other programs: `reparam export` and `reparam quantize`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ._shared import Act, Json, Network, Overwrite, Tile, Wrapper, load


def export(
    source: Network,
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, .pt2, .xml (OpenVINO) or .ncnn.param.")],
    wrapper: Wrapper = None,
    act: Act = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a checkpoint's network and write it for another program, proved equal there."""
    from .. import deploy
    from ..deploy._exporter import targets_of
    from ..models._pretrained import network_file

    targets_of(target, [network_file(source)], overwrite)
    report = deploy.export(load(source, wrapper, act), target)
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))


def quantize(
    source: Network,
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, or .xml (OpenVINO).")],
    images: Annotated[Path, typer.Option(help="Folder of images such as the network is to enlarge, to calibrate on.")],
    wrapper: Wrapper = None,
    act: Act = None,
    targets: Annotated[Path | None, typer.Option(help="Folder of the same images, large, in the same order.")] = None,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="One scale for all channels of a weight.")] = False,
    weight_bits: Annotated[
        int | None, typer.Option(min=7, max=8, help="7 is right on every processor; else the better one here is taken.")
    ] = None,
    tile: Tile = 256,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a network and write it in 8 bits, calibrated on images; say what that costs."""
    from .. import sr
    from ..deploy._exporter import targets_of
    from ..models._pretrained import network_file

    bits = cast("Any", weight_bits)  # 7 or 8, which `min` and `max` saw to
    targets_of(target, [network_file(source)], overwrite)
    net = load(source, wrapper, act)
    report = sr.quantize(net, target, images, targets=targets, per_channel=not per_tensor, weight_bits=bits, tile=tile)
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))
