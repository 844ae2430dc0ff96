"""The `reparam` command: every line calls something of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import __version__

app = typer.Typer(no_args_is_help=True, help="Re-parameterizable blocks: train branches, ship one convolution.")


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
    steps: Annotated[int, typer.Option(min=10, help="Training steps.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of weights and patches.")] = 0,
) -> None:
    """Train a small RepSR on photos of scikit-image, freeze its batch norms, fuse it, prove it, draw it."""
    try:
        from .demo import run_demo  # its packages come with the extra, and the other commands do without
    except ModuleNotFoundError as error:
        typer.echo(f"the demo needs the package {error.name!r}: pip install 'reparam[demo]'", err=True)
        raise typer.Exit(1) from None
    result = run_demo(out, steps, seed)
    table = Table(
        "", "bicubic", "train graph", "fused", title="RepSR-M4C16 x2 after training on photos of scikit-image"
    )
    for name, scores in result.psnr_db.items():
        table.add_row(f"PSNR on {name}, held out (dB)", *(f"{score:.2f}" for score in scores.values()))
    table.add_row("parameters", "", *(f"{count:,}" for count in result.parameters))
    table.add_row("training step (ms)", "", *(f"{ms:.1f}" for ms in result.step_ms))
    table.add_row("inference, 256x256 (ms)", "", *(f"{ms:.1f}" for ms in result.inference_ms))
    total = result.report.total
    table.add_row("max |fused - train graph|", "", "", f"{total.max_abs:.1e}")
    table.add_row("rounding alone, float32", "", "", f"{total.noise_floor:.1e}")
    Console().print(table)
    typer.echo(f"fused weights: {result.weights}\npicture:       {result.picture}")
