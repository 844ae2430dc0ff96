"""The commands that measure training and inference: `reparam bench` and `reparam bench infer`."""

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

Side = Annotated[int, typer.Option(min=1, max=MOST_PIXELS, help="Size of the image, in pixels.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often to run everything; the median is reported.")]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    channels: Annotated[
        list[int] | None,
        typer.Option(min=1, max=4096, help="Width of the blocks; repeat for several widths. 16 and 64 by default."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images per batch.")] = 16,
    size: Annotated[int, typer.Option(min=3, max=MOST_PIXELS, help="Height and width of the images, in pixels.")] = 64,
    networks: Annotated[
        str, typer.Option(help="Size of the networks, as in the names that `reparam models` lists.")
    ] = "m4c16",
    rounds: Rounds = 10,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda, mps, ...")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile (torch 2.13 or newer).")] = False,
    autocast: Annotated[bool, typer.Option("--autocast", help="Use autocast to bfloat16.")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="At most 3 rounds, one width, and two networks, with fold='auto' only."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the cost of training on this machine, relative to plain convolutions. `infer` measures inference."""
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
    typer.echo("A training step relative to that of a plain 3x3 convolution: time, and bytes saved for backward")
    typer.echo(f"({batch} images of {size}x{size}, {on['threads']} threads; {on['device']}: {on['name']}, ", nl=False)
    typer.echo(f"torch {on['torch']}, {on['dtype']}, {on['mode']})")
    titles = {"block": "", "channels": "d", "phase": "", "mode": "", "time": ".2f", "saved": ".2f", "launches": "d"}
    typer.echo(table({**titles, "fuse (ms)": ".1f", "error": ".0e"}, map(astuple, blocks)))
    typer.echo(
        "\nA training run relative to the plain network's (10 % with frozen batch norms), and before and after freezing"
    )
    titles = {"network": "", "mode": "", "time": ".2f", "before": ".2f", "frozen": ".2f", "launches": "d"}
    typer.echo(table({**titles, "launches, frozen": "d"}, map(astuple, training)))


@app.command()
def infer(
    model: Annotated[
        str, typer.Argument(metavar="NETWORK", help=f"{NETWORK} Any other name of `reparam models` runs untrained.")
    ] = "repsr_m4c16_x2",
    wrapper: Wrapper = None,
    act: Act = None,
    height: Side = 540,
    width: Side = 960,
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine to measure; repeat for several. All that are installed by default.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="File of the same network to measure too, such as `reparam quantize` writes."),
    ] = None,
    rounds: Rounds = 5,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure a network's speed on the installed engines, fused and as the training graph, next to the CPU's limit."""
    from .. import bench

    net = _network(model, wrapper, act)
    with bar("Measuring", rounds + 2) as advance:
        report = bench.bench_inference(
            net, height, width, engines=engine, files=file or (), rounds=rounds, threads=threads, progress=advance
        )
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else f"{model}, {report}")


def _network(name: str, wrapper: str | None, act: str | None) -> models.Network:
    """The network with its blocks, and with weights from a file or from the package, if there are any."""
    import torch

    from .. import models

    if name in models.list_models(pretrained=True) or Path(name).exists():
        return load(name, wrapper, act)
    refuse_told(name, "is not a file", wrapper, None)
    net = models.create_model(name, **told(act))
    with torch.no_grad():
        net(torch.rand(2, net.colors, 16, 16))  # statistics for its batch norms
    return net.eval()
