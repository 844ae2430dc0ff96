"""Runs a user shader in libplacebo, the renderer of players, through ffmpeg's filter."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ...errors import ExportError
from .._runners import Run

_FORMATS = {1: ("gray16le", "bt709", 1), 3: ("rgba64le", "gbr", 4)}
"""By the number of colors: a 16-bit format that Vulkan has, its color space, and its channels per pixel."""


@cache
def player() -> tuple[str, str]:
    """The program that can run a shader here and "", or "" and the reason why none can.

    Example:
        >>> name, reason = player()
        >>> bool(name) != bool(reason)
        True
    """
    if shutil.which("ffmpeg") is None:
        return "", "there is no ffmpeg"
    version = _called(["-version"]).stdout.decode().split()[2]
    if not re.search(rb"\slibplacebo\s", _called(["-v", "error", "-filters"]).stdout):
        return "", f"ffmpeg {version} has no libplacebo"
    try:
        _rendered(np.zeros((1, 2, 2), np.float32), None, 1)
    except ExportError as problem:
        return "", f"ffmpeg {version} finds no Vulkan driver, such as Debian's mesa-vulkan-drivers: {problem}"
    return f"ffmpeg {version} (libplacebo)", ""


def run_player(file: Path, scale: int) -> Run:
    """Run a user shader on images from 0 to 1, and return what is shown, clipped to 0 to 1."""
    return lambda x: np.stack([_rendered(image, file, scale) for image in x])


def _rendered(image: np.ndarray, shader: Path | None, scale: int) -> np.ndarray:
    colors, height, width = image.shape
    pixels, space, channels = _FORMATS[colors]
    given = np.ones((height, width, channels), np.float32)  # opaque
    given[..., :colors] = image.clip(0, 1).transpose(1, 2, 0)
    tags = f"setparams=range=pc:colorspace={space}:color_primaries=bt709:color_trc=bt709"
    placebo = f"libplacebo=w={width * scale}:h={height * scale}:format={pixels}:range=pc:colorspace={space}"
    with TemporaryDirectory() as folder:  # its name has no characters that are special in filters
        if shader is not None:
            shutil.copyfile(shader, Path(folder, "net.glsl"))
            placebo += ":custom_shader_path=net.glsl"
        done = _called(
            [
                *("-v", "error", "-init_hw_device", "vulkan"),
                *("-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-i", "-"),
                *("-vf", f"{tags},hwupload,{placebo},hwdownload,format={pixels}"),
                *("-f", "rawvideo", "-pix_fmt", pixels, "-"),
            ],
            np.rint(given * 65535).astype("<u2").tobytes(),
            folder,
        )
    shape = (height * scale, width * scale, channels)
    if done.returncode or b"Failed" in done.stderr or len(done.stdout) != 2 * np.prod(shape):
        raise ExportError(_said(done.stderr))
    shown = np.frombuffer(done.stdout, "<u2").reshape(shape)[..., :colors]
    return shown.transpose(2, 0, 1).astype(np.float32) / 65535


def _said(log: bytes) -> str:
    """The error in a log of ffmpeg, without the whole shader that is printed around it."""
    lines = log.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "; ".join(errors)[:400] or "it gives no image and no reason"


def _called(
    arguments: Sequence[str], given: bytes = b"", folder: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ffmpeg", "-hide_banner", *arguments], input=given, capture_output=True, cwd=folder)
