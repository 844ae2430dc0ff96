"""What the commands have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ReparamError
from ..models import pretrained_file


@contextmanager
def user_errors() -> Iterator[None]:
    """A mistake of the user's is a message and exit code 1, not a traceback."""
    try:
        yield
    except (ReparamError, OSError) as error:
        plain = str(error)
        if isinstance(error, OSError) and error.filename:  # else it would begin with "[Errno 2]"
            plain = f"{error.strerror}: {error.filename}"
        typer.echo(f"error: {plain}", err=True)
        raise typer.Exit(1) from None


def _checkpoint(name: str) -> Path:
    """The file that a user means: the one of this path, or that of a network with weights."""
    if Path(name).exists() or name != Path(name).stem:
        return Path(name)
    with user_errors():  # no file is called so: a network, which may be mistyped
        return pretrained_file(name)


Checkpoint = Annotated[
    Path,
    typer.Argument(
        parser=_checkpoint,
        metavar="FILE",
        help="Checkpoint (.pth, .pt or .safetensors), or a network with weights (see `reparam models --pretrained`).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
