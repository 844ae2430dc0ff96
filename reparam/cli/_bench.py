"""What training and inference cost here: `reparam bench` and `reparam bench infer`."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._tables import table
from ._shared import MOST_PIXELS, NETWORK, Act, Json, Threads, Wrapper, bar, load, refuse_told, told

if TYPE_CHECKING:
    from .. import models

app = typer.Typer()

Side = Annotated[int, typer.Option(min=1, max=MOST_PIXELS, help="Of the image, in pixels.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often everything is run; the median counts.")]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    channels: Annotated[
        list[int] | None, typer.Option(min=1, max=4096, help="Widths to measure; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images in a batch.")] = 16,
    size: Annotated[int, typer.Option(min=3, max=MOST_PIXELS, help="Height and width, in pixels.")] = 64,
    networks: Annotated[str, typer.Option(help="Size of the networks, as in their names.")] = "m4c16",
    rounds: Rounds = 10,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="Where: cpu, cuda, mps, ...")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile (torch 2.13 or newer).")] = False,
    autocast: Annotated[bool, typer.Option("--autocast", help="Under autocast to bfloat16.")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="3 rounds at most, one width, and networks with fold='auto' alone."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what training costs here, as ratios to plain convolutions; or, with `infer`, what inference does."""
    if context.invoked_subcommand:
        return
    from .. import bench
    from ..deploy._threads import torch_threads

    widths = channels or ([64] if quick else [16, 64])
    rounds = min(rounds, 3) if quick else rounds
    setting = bench.Setting(device, compiled, autocast)
    few: dict[str, Any] = {"families": ("repsr", "ecbsr"), "modes": ("auto",)} if quick else {}
    with torch_threads(threads), bar("Measuring", (rounds + 2) * (len(widths) + 1)) as advance:
        on = setting.measured_on()
        blocks = [
            row for width in widths for row in bench.bench_blocks(width, batch, size, rounds, advance, setting=setting)
        ]
        training = bench.bench_training(
            size=networks, batch=batch, patch=size, rounds=rounds, progress=advance, setting=setting, **few
        )
    if as_json:
        rows = {"blocks": list(map(asdict, blocks)), "training": list(map(asdict, training))}
        typer.echo(json.dumps({"measured_on": on, **rows}, indent=2))
        return
    typer.echo("A training step over that of a plain 3x3 convolution: time, and bytes saved for backward")
    typer.echo(f"({batch} images of {size}x{size}, {on['threads']} threads; {on['device']}: {on['name']}, ", nl=False)
    typer.echo(f"torch {on['torch']}, {on['dtype']}, {on['mode']})")
    titles = {"block": "", "channels": "d", "phase": "", "mode": "", "time": ".2f", "saved": ".2f", "launches": "d"}
    typer.echo(table({**titles, "fuse (ms)": ".1f", "error": ".0e"}, map(astuple, blocks)))
    typer.echo("\nA whole training over the plain one (10 % with frozen batch norms), and before and after freezing")
    titles = {"network": "", "mode": "", "time": ".2f", "before": ".2f", "frozen": ".2f", "launches": "d"}
    typer.echo(table({**titles, "launches, frozen": "d"}, map(astuple, training)))


@app.command()
def infer(
    model: Annotated[
        str, typer.Argument(metavar="NETWORK", help=f"{NETWORK} Any other name of `reparam models`, untrained, too.")
    ] = "repsr_m4c16_x2",
    wrapper: Wrapper = None,
    act: Act = None,
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
    from .. import bench

    net = _network(model, wrapper, act)
    with bar("Measuring", rounds + 2) as advance:
        report = bench.bench_inference(
            net, height, width, engines=engine, files=file or (), rounds=rounds, threads=threads, progress=advance
        )
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else f"{model}, {report}")


def _network(name: str, wrapper: str | None, act: str | None) -> models.Network:
    """With its blocks, and with weights if there are some: of a file, or of the package."""
    import torch

    from .. import models

    if name in models.list_models(pretrained=True) or Path(name).exists():
        return load(name, wrapper, act)
    refuse_told(name, "is no file", wrapper, None)
    net = models.create_model(name, **told(act))
    with torch.no_grad():
        net(torch.rand(2, net.colors, 16, 16))  # statistics for its batch norms
    return net.eval()
