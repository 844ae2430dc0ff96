"""Writes networks as shader files, runs them if a program is there, and compares the results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ...errors import ExportError
from .._lean import Gather, lean
from .._plain import Dynamic, plain_steps
from .._runners import Run
from .glsl import glsl
from .known import check_passes, check_steps
from .passes import Pass, passes_of
from .player import player, run_player
from .trial import Trial, tried
from .webgpu import run_webgpu, webgpu
from .wgsl import wgsl


def shader_passes(net: nn.Module, example: Tensor) -> tuple[Pass, ...]:
    """The passes of a fused network, for images of any size.

    Raises:
        ExportError: if a shader cannot express the network.
    """
    plain = plain_steps(lean(net, Gather), example)
    check_steps(plain)
    passes = passes_of(plain)
    check_passes(passes)
    return passes


def write_glsl(net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Mapping[str, str]) -> None:
    """Write a user shader for video players. Sizes are always free, whatever `dynamic` is."""
    passes = shader_passes(net, example)
    notes = _notes(passes, metadata)
    file.write_text(glsl(passes, f"{type(net).__name__} x{notes['scale']}", notes))


def write_wgsl(net: nn.Module, example: Tensor, dynamic: Dynamic, file: Path, metadata: Mapping[str, str]) -> None:
    """Write a module for WebGPU. Sizes are always free, whatever `dynamic` is."""
    passes = shader_passes(net, example)
    file.write_text(wgsl(passes, _notes(passes, metadata)))


def _notes(passes: tuple[Pass, ...], metadata: Mapping[str, str]) -> dict[str, str]:
    (output,) = passes[-1].writes.values()
    return {**metadata, "scale": str(output.scale), "colors": str(output.channels)}


def read_glsl(file: Path) -> tuple[str, Run]:
    """The program that runs a shader of `write_glsl`, and a function that runs it on images from 0 to 1."""
    return _there(*player()), run_player(file, _note(file, "scale"))


def read_wgsl(file: Path) -> tuple[str, Run]:
    """The program that runs a file of `write_wgsl`, and a function that runs it."""
    return _there(*webgpu()), run_webgpu(file)


def try_glsl(file: Path, net: nn.Module) -> Trial:
    """Compare a file of `write_glsl` with its network."""
    return tried(*player(), lambda: run_player(file, _note(file, "scale")), net, _note(file, "colors"))


def try_wgsl(file: Path, net: nn.Module) -> Trial:
    """Compare a file of `write_wgsl` with its network."""
    return tried(*webgpu(), lambda: run_webgpu(file), net, _note(file, "colors"))


def _there(name: str, missing: str) -> str:
    if missing:
        raise ExportError(f"nothing here can run the shader: {missing}")
    return name


def _note(file: Path, key: str) -> int:
    found = re.search(rf"^// {key}: (\d+)$", file.read_text(), re.MULTILINE)
    if found is None:
        raise ExportError(f"{file.name} does not say its {key}; shaders that `export` wrote do")
    return int(found[1])
