"""User shaders as files: written, and read back by what can run them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ...errors import ExportError
from .._lean import Gather, lean
from .._plain import plain_steps
from .._runners import Run
from .glsl import glsl
from .known import check_passes, check_steps
from .passes import Pass, passes_of
from .player import player, run_player
from .trial import Trial, tried


def write_glsl(net: nn.Module, example: Tensor, dynamic: bool, file: Path, metadata: Mapping[str, str]) -> None:
    """Writes a user shader.

    Raises:
        ExportError: for what a shader cannot say.
    """
    passes = shader_passes(net, example)
    (output,) = passes[-1].writes.values()
    notes = {**metadata, "scale": str(output.scale), "colors": str(output.channels)}
    file.write_text(glsl(passes, f"{type(net).__name__} x{output.scale}", notes))


def shader_passes(net: nn.Module, example: Tensor) -> tuple[Pass, ...]:
    """The passes of a fused network, if a shader can say them.

    Raises:
        ExportError: if not.
    """
    plain = plain_steps(lean(net, Gather), example)
    check_steps(plain)
    passes = passes_of(plain)
    check_passes(passes)
    return passes


def read_glsl(file: Path) -> tuple[str, Run]:
    """What can run a user shader of `write_glsl`, and the function that does, of images of 0 to 1.

    Raises:
        ExportError: if nothing here can.
    """
    name, missing = player()
    if missing:
        raise ExportError(f"nothing here runs a user shader: {missing}")
    return name, run_player(file, _note(file, "scale"))


def try_glsl(file: Path, net: nn.Module) -> Trial:
    """A file of `write_glsl` compared with its network.

    Raises:
        ExportError: if it fails, or shows something else.
    """
    return tried(file, net, _note(file, "colors"), _note(file, "scale"))


def _note(file: Path, key: str) -> int:
    found = re.search(rf"^// {key}: (\d+)$", file.read_text(), re.MULTILINE)
    if found is None:
        raise ExportError(f"{file.name} does not say its {key}, as the user shaders of `export` do")
    return int(found[1])
