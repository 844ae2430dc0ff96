"""What the commands have in common."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import ReparamError, SpecError

if TYPE_CHECKING:
    from .. import models

MOST_PIXELS = 8192
"""Of a side of an image that is made up."""


class Commands(TyperGroup):
    """Every command: the user's mistakes are a line and exit code 1, no traceback, and nothing half done stays."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with _leaving_on_signals(), user_errors():
            return super().invoke(ctx)


@contextmanager
def user_errors() -> Iterator[None]:
    """A mistake of the user's, or a machine that is too small, is a line and exit code 1, not a traceback."""
    try:
        yield
    except (BrokenPipeError, typer.Exit):  # of `| head`, which click ends in silence; and of `--help`
        raise
    except (ReparamError, OSError, MemoryError, RuntimeError) as error:
        if not (plain := _plain(error)):
            raise
        typer.echo(f"error: {plain}", err=True)
        raise typer.Exit(1) from None


def _plain(error: Exception) -> str:
    """What to tell the user; "" of a mistake in here."""
    from ..sr._upscale.memory import ran_out

    if isinstance(error, OSError) and error.filename:  # else it would begin with "[Errno 2]"
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, (ReparamError, OSError)):
        return str(error)
    advice = "take less at once: smaller images or tiles, fewer images, or fewer threads"
    return f"not enough memory; {advice} ({str(error).strip()})".partition("\n")[0] if ran_out(error) else ""


@contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """Asked to end, or left alone by its terminal, a command goes through its `finally`s, which remove what is half."""

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice, which would end the removing
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # `nohup` ignores the second
    if threading.current_thread() is not threading.main_thread():  # which alone may
        taken = []
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def load(network: str, wrapper: str | None, act: str | None, *, fused: bool = False) -> models.Network:
    """What a `Network` stands for; of one that comes with weights, `fused` takes those without blocks."""
    from .. import files
    from ..models._pretrained import network_file

    return files.load_checkpoint(network_file(network, fused=fused), wrapper=wrapper, **told(act))


def told(act: str | None) -> dict[str, Any]:
    """The options of a network that a command was given."""
    return {} if act is None else {"act": act}


def refuse_told(network: str, why: str, wrapper: str | None, act: str | None) -> None:
    """Raises a SpecError for options of checkpoints that were given with something else."""
    given = {"--wrapper": wrapper, "--act": act}
    if names := [name for name, value in given.items() if value is not None]:
        raise SpecError(f"{network} {why}; leave out {' and '.join(names)}")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], object]]:
    """A bar that goes when all is done; what it gives is called at each step."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


NETWORK = "Checkpoint (.pth, .pt or .safetensors), or a network with weights (see `reparam models --pretrained`)."
Network = Annotated[str, typer.Argument(metavar="NETWORK", help=NETWORK)]
Wrapper = Annotated[
    str | None,
    typer.Option(
        help="Where in the file the state dict is, such as params or state_dict.net_g; else it is looked for."
    ),
]
Act = Annotated[str | None, typer.Option(help="Activation, where the file has no slopes of PReLU.")]
Tile = Annotated[int, typer.Option(min=0, help="Side of a tile in pixels; 0 takes each image as a whole.")]
Threads = Annotated[int, typer.Option(help="How many are used; 0 leaves that to the engine.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there; never what is read.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
