"""`reparam bench` and `reparam bench infer`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..bench import InferenceReport, bench_blocks, bench_inference, bench_training
from ..deploy._threads import torch_threads
from ..files import load_checkpoint
from ..models import create_model, list_models
from ..models._registry import Network
from ._shared import MOST_PIXELS, Json, Threads

app = typer.Typer()

Side = Annotated[int, typer.Option(min=1, max=MOST_PIXELS, help="Of the image, in pixels.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often everything is run; the median counts.")]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Measuring", total=total)
        yield lambda: bar.advance(task)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    channels: Annotated[
        list[int] | None, typer.Option(min=1, max=4096, help="Widths to measure; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images in a batch.")] = 16,
    size: Annotated[int, typer.Option(min=3, max=MOST_PIXELS, help="Height and width, in pixels.")] = 64,
    rounds: Rounds = 10,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure what training costs here, as ratios to plain convolutions; or, with `infer`, what inference does."""
    if context.invoked_subcommand:
        return
    widths = channels or [16, 64]
    with torch_threads(threads), _progress((rounds + 2) * (len(widths) + 1)) as advance:
        used = torch.get_num_threads()
        blocks = [row for width in widths for row in bench_blocks(width, batch, size, rounds, advance)]
        training = bench_training(batch=batch, patch=size, rounds=rounds, progress=advance)
    if as_json:
        typer.echo(json.dumps({"blocks": list(map(asdict, blocks)), "training": list(map(asdict, training))}, indent=2))
        return
    shape = f"{batch} images of {size}x{size}, {used} threads"
    title = f"A training step over that of a plain 3x3 convolution ({shape})"
    table = Table("block", "channels", "phase", "mode", "time", "saved bytes", "fuse (ms)", "fuse error", title=title)
    for row in blocks:
        ratios = (f"{row.step:.2f}", f"{row.saved:.2f}", f"{row.fuse_ms:.1f}", f"{row.fuse_error:.0e}")
        table.add_row(row.block, str(row.channels), row.phase, row.mode, *ratios)
    Console().print(table)
    table = Table("network", "mode", "time", title="A whole training over the plain one (10 % with frozen batch norms)")
    for whole in training:
        table.add_row(whole.model, whole.mode, f"{whole.step:.2f}")
    Console().print(table)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="A name that `reparam models` shows, or a checkpoint.")] = (
        "repsr_m4c16_x2"
    ),
    height: Side = 540,
    width: Side = 960,
    engine: Annotated[list[str] | None, typer.Option(help="Engines to measure; may be repeated. All, if none.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Of the same network, such as `reparam quantize` writes."),
    ] = None,
    rounds: Rounds = 5,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure a network on the engines that are installed: its train graph, and fused, beside the processor's limit."""
    net = _network(model)
    with _progress(rounds + 2) as advance:
        report = bench_inference(
            net, height, width, engines=engine, files=file or (), rounds=rounds, threads=threads, progress=advance
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    Console().print(_as_table(model, report))
    for name, why in report.failed.items():
        typer.echo(f"{name} is installed and cannot run this network: {why}")
    typer.echo(f"limit: {report.limit_gflops:.0f} GFLOP/s, a product of float32 matrices in the same run")


def _network(name: str) -> Network:
    """With weights if there are some: of a file, or of the package."""
    if Path(name).exists():
        return load_checkpoint(name)
    pretrained = name in list_models(pretrained=True)
    net = create_model(name, pretrained=pretrained)
    if not pretrained:
        with torch.no_grad():
            net(torch.rand(2, net.colors, 16, 16))  # statistics for its batch norms
    return net.eval()


def _as_table(model: str, report: InferenceReport) -> Table:
    _, _, height, width = report.shape
    title = f"{model}, {width}x{height}, {report.operations / 1e9:.1f} GFLOP, {report.threads} threads of torch"
    table = Table("graph", "engine", "ms", "Mpixel/s", "speed", "GFLOP/s", "of the limit", "difference", title=title)
    for row in report.rows:
        times = (f"{row.latency_ms:.1f}", f"{row.megapixels_per_s:.1f}", f"{row.speed:.2f}")
        table.add_row(row.graph, row.engine, *times, f"{row.gflops:.0f}", f"{row.share:.0%}", f"{row.error:.0e}")
    return table
