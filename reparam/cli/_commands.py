"""The `reparam` command: every line calls something of the library."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import __version__
from ..deploy import export as export_network
from ..deploy._exporter import targets_of
from ..errors import SpecError
from ..files import fuse_file, inspect_file, load_checkpoint
from ..files._writing import check_targets
from ..fusing._fuse import fuse as fuse_network
from ..fusing._verify import verify as verify_networks
from ..models import list_models
from ..sr._quantize import quantize as quantize_network
from ..sr._upscale import Upscaler
from . import _bench as bench
from ._shared import MOST_PIXELS, Act, Checkpoint, Commands, Json, Overwrite, Threads, Tile, WithBlocks, Wrapper

app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Re-parameterizable blocks: train branches, ship one convolution."
)
app.add_typer(bench.app, name="bench")


class Keys(str, Enum):
    """Whose keys a fused file gets."""

    source = "source"
    reparam = "reparam"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reparam {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Re-parameterizable blocks: train branches, ship one convolution."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the weights and the picture.")] = Path(
        "reparam-demo"
    ),
    steps: Annotated[int, typer.Option(min=10, help="Training steps.")] = 1200,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of weights and patches.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small RepSR on photos of scikit-image, freeze its batch norms, fuse it, prove it, draw it."""
    try:
        from ..sr._demo import files_in, run_demo  # its packages come with the extra, and the other commands do without
    except ModuleNotFoundError as error:
        typer.echo(f"the demo needs the package {error.name!r}: pip install 'reparam[demo]'", err=True)
        raise typer.Exit(1) from None
    out.mkdir(parents=True, exist_ok=True)
    check_targets(files_in(out), (), overwrite)
    result = run_demo(out, steps, seed)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2, default=str))
        return
    table = Table(
        "", "bicubic", "train graph", "fused", title="RepSR-M4C16 x2 after training on photos of scikit-image"
    )
    for name, scores in result.psnr_db.items():
        table.add_row(f"PSNR on {name}, held out (dB)", *(f"{score:.2f}" for score in scores.values()))
    table.add_row("parameters", "", *(f"{count:,}" for count in result.parameters))
    table.add_row("training step, batch statistics (ms)", "", *(f"{ms:.1f}" for ms in result.batch_step_ms))
    table.add_row("training step, frozen (ms)", "", *(f"{ms:.1f}" for ms in result.frozen_step_ms))
    table.add_row("inference, 256x256 (ms)", "", *(f"{ms:.1f}" for ms in result.inference_ms))
    total = result.report.total
    table.add_row("max |fused - train graph|", "", "", f"{total.max_abs:.1e}")
    table.add_row("rounding alone, float32", "", "", f"{total.noise_floor:.1e}")
    Console().print(table)
    typer.echo(f"fused weights: {result.weights}\npicture:       {result.picture}")


@app.command()
def fuse(
    source: WithBlocks,
    target: Annotated[Path, typer.Argument(help="File to write; .safetensors, or torch's format.")],
    keys: Annotated[Keys, typer.Option(help="Whose keys to write: those of the code the file is from, or ours.")] = (
        Keys.source
    ),
    wrapper: Wrapper = None,
    eps: Annotated[float | None, typer.Option(help="Of the batch norms, if not torch's 1e-5.")] = None,
    identity: Annotated[
        bool | None, typer.Option("--identity/--no-identity", help="Where the keys do not tell (with_idt of ECBSR).")
    ] = None,
    act: Act = None,
    with_13: Annotated[bool, typer.Option("--with-13", help="EFDN: the blocks use their 1x1-3x3 path.")] = False,
    pool: Annotated[
        bool | None, typer.Option("--pool/--no-pool", help="Whether blocks have an average pool (QARepVGG's V2).")
    ] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Of the channels, where the keys do not tell.")] = None,
    dilations: Annotated[list[int] | None, typer.Option(help="Of small kernels; once for each of them.")] = None,
    img_range: Annotated[
        float | None, typer.Option(help="Of the images that an ECBSR was trained on: 255 or 1.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a checkpoint of this library or of a paper's code, check every block, write the result."""
    layout: Any = {"eps": eps, "identity": identity, "with_13": with_13, "pool": pool}
    layout |= {"groups": groups, "dilations": dilations or None}
    told: dict[str, Any] = {"act": act, "img_range": img_range}
    options = {key: value for key, value in told.items() if value is not None}
    check_targets([target], [source], overwrite)
    report = fuse_file(source, target, keys=keys.value, wrapper=wrapper, **layout, **options)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    table = Table("block", "kind", "numbers", "fused", "error", title=report.network or "Blocks of an unknown network")
    for row in report.blocks:
        table.add_row(row.name, row.kind, f"{row.before:,}", f"{row.after:,}", f"{row.error:.0e}")
    table.add_row("the whole file", "", f"{report.before:,}", f"{report.after:,}", "")
    Console().print(table)
    typer.echo(f"written: {target}")


@app.command()
def inspect(
    file: Checkpoint,
    wrapper: Wrapper = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint holds: network, blocks, sizes, and what stands in the way of fusing it."""
    report = inspect_file(file, wrapper=wrapper)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(str(report))


@app.command()
def upscale(
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for the results.")],
    model: Annotated[str, typer.Option(help="Network with weights (see `reparam models`), or a checkpoint.")] = (
        "repsr_m4c16_x2"
    ),
    engine: Annotated[
        str, typer.Option(help="auto, torch, torch-compile, onnxruntime, openvino, openvino-bf16 or ncnn.")
    ] = "auto",
    tile: Tile = 256,
    threads: Threads = 0,
    suffix: Annotated[str, typer.Option(help="Format of the results, such as .png; if not given, the source's.")] = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Enlarge images by a network: photo.png becomes photo_x2.png in the folder."""
    try:
        from ..sr._upscale.batch import plan, upscale_files
    except ModuleNotFoundError as error:
        typer.echo(f"upscaling needs the package {error.name!r}: pip install 'reparam[upscale]'", err=True)
        raise typer.Exit(1) from None
    upscaler = Upscaler(model, engine=engine, tile=tile, threads=threads)
    targets = plan(images, out, upscaler.scale, suffix, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[Path, str] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for source, why in bar.track(upscale_files(upscaler, targets), len(targets), description=upscaler.engine):
            failed |= {source: why} if why else {}
            if why or not as_json:
                typer.echo(f"error: {source}: {why}" if why else f"{source} -> {targets[source]}", err=bool(why))
    if as_json:
        files = [
            {"source": str(source), "target": None if source in failed else str(target), "error": failed.get(source)}
            for source, target in targets.items()
        ]
        typer.echo(json.dumps({"engine": upscaler.engine, "scale": upscaler.scale, "files": files}, indent=2))
    if failed:
        raise typer.Exit(1)


@app.command()
def export(
    source: Checkpoint,
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, .pt2, .xml (OpenVINO) or .ncnn.param.")],
    wrapper: Wrapper = None,
    act: Act = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a checkpoint's network and write it for another program, proved equal there."""
    targets_of(target, [source], overwrite)
    net = load_checkpoint(source, wrapper=wrapper, **({} if act is None else {"act": act}))
    report = export_network(net, target)
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(help="Network with weights (see `reparam models`), or a checkpoint.")],
    target: Annotated[Path, typer.Argument(help="File to write: .onnx, or .xml (OpenVINO).")],
    images: Annotated[Path, typer.Option(help="Folder of images such as the network is to enlarge, to calibrate on.")],
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
    targets_of(target, [Path(source)], overwrite)
    bits: Any = weight_bits
    report = quantize_network(
        source, target, images, targets=targets, per_channel=not per_tensor, weight_bits=bits, tile=tile
    )
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))


@app.command()
def verify(
    source: WithBlocks,
    wrapper: Wrapper = None,
    act: Act = None,
    size: Annotated[
        int, typer.Option(min=1, max=MOST_PIXELS, help="Height and width of the image that it is tried on.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Compare a checkpoint's network with its fused form, block by block; exit code 1 if they differ."""
    net = load_checkpoint(source, wrapper=wrapper, **({} if act is None else {"act": act}))
    image = torch.rand(1, net.colors, size, size, generator=torch.Generator().manual_seed(0))
    report = verify_networks(net, fuse_network(net), image)
    typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=2) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="As of a shell, such as 'repsr_*_x2'.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only networks that come with weights.")] = False,
    as_json: Json = False,
) -> None:
    """List the names of networks, those with weights marked."""
    with_weights = set(list_models(pretrained=True))
    names = list_models(pattern, pretrained=pretrained)
    if not names:
        raise SpecError(f"no name fits {pattern!r}; there are {', '.join(list_models(pretrained=pretrained))}")
    if as_json:
        typer.echo(json.dumps([{"name": name, "pretrained": name in with_weights} for name in names], indent=2))
        return
    for name in names:
        typer.echo(f"{name}  (weights)" if name in with_weights else name)
