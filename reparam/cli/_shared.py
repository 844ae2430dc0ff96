"""What the commands share: errors, signals, options."""

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
"""The longest side of a made-up image."""


class Commands(TyperGroup):
    """A group whose commands report a user's mistake in one line with exit code 1, and leave nothing half done."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _leaving_on_signals(), user_errors():
            return super().invoke(ctx)


@contextmanager
def user_errors() -> Iterator[None]:
    """Report a user's mistake, or too little memory, in one line with exit code 1 instead of a traceback."""
    try:
        yield
    except (BrokenPipeError, typer.Exit):  # from `| head`, which click ends silently, and from `--help`
        raise
    except (ReparamError, OSError, MemoryError, RuntimeError) as error:
        if not (plain := _plain(error)):
            raise
        typer.echo(f"error: {plain}", err=True)
        raise typer.Exit(1) from None


def _plain(error: Exception) -> str:
    """The line for the user; "" for a mistake in this program."""
    from ..sr._upscale.memory import ran_out

    if isinstance(error, OSError) and error.filename:  # else it would begin with "[Errno 2]"
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, (ReparamError, OSError)):
        return str(error)
    advice = "use smaller images or tiles, fewer images, or fewer threads"
    return f"not enough memory; {advice} ({str(error).strip()})".partition("\n")[0] if ran_out(error) else ""


@contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """Let a command that a signal ends (a closed terminal, say) run its `finally`s, which remove unfinished files."""

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice; the second must not stop the cleanup
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # `nohup` ignores the second
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        taken = []
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def load(network: str, wrapper: str | None, act: str | None, *, fused: bool = False) -> models.Network:
    """Load what a `Network` argument names. For shipped weights, `fused` selects those without blocks."""
    from .. import files
    from ..models._pretrained import network_file

    return files.load_checkpoint(network_file(network, fused=fused), wrapper=wrapper, **told(act))


def told(act: str | None) -> dict[str, Any]:
    """The options of the network that the command got."""
    return {} if act is None else {"act": act}


def refuse_told(network: str, why: str, wrapper: str | None, act: str | None) -> None:
    """Raise a SpecError for options of checkpoints that were given with something else."""
    given = {"--wrapper": wrapper, "--act": act}
    if names := [name for name, value in given.items() if value is not None]:
        raise SpecError(f"{network} {why}; leave out {' and '.join(names)}")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], object]]:
    """Show a progress bar that disappears at the end; call what it yields at each step."""
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
        help="Where in the file the state dict is, such as params or state_dict.net_g. Searched for by default."
    ),
]
Act = Annotated[str | None, typer.Option(help="Activation, if the file has no PReLU slopes.")]
Tile = Annotated[int, typer.Option(min=0, help="Side of a tile in pixels; 0 runs each image whole.")]
Threads = Annotated[int, typer.Option(help="Number of threads; 0 lets the engine choose.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files; never the file that is read.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
