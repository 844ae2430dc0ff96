"""User shaders as files: written, and read back by what can run them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from .._lean import Gather, lean
from .._plain import plain_steps
from .._runners import Run
from .glsl import glsl
from .known import check_passes, check_steps
from .passes import Pass, passes_of
from .player import player, run_player


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
    """What runs a user shader, and the function that does."""
    name, reason = player()
    if reason:
        raise NotRun(reason)
    match = re.search(r"^// scale: (\d+)$", file.read_text(), re.MULTILINE)
    return name, run_player(file, int(match[1]) if match else 1)
