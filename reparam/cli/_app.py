"""The `reparam` app with all its commands, in the order in which `reparam --help` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import _bench as bench
from ._checkpoints import fuse, inspect, models, verify
from ._images import demo, upscale
from ._programs import export, quantize
from ._shared import Commands

app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Re-parameterizable blocks: train branches, ship one convolution."
)
for command in (demo, fuse, inspect, verify, upscale, export, quantize, models):
    app.command()(command)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reparam {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Re-parameterizable blocks: train branches, ship one convolution."""
