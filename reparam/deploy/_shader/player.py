"""A user shader run by a player's own renderer: libplacebo, in the filter of ffmpeg."""

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
"""By colours: a format of 16 bits that Vulkan has, what its numbers are, and how many there are for a pixel."""


@cache
def player() -> tuple[str, str]:
    """What can run a shader here, or "" and why nothing can.

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
    """A user shader: takes images of 0 to 1, and gives what is shown, cut to 0 to 1."""
    return lambda x: np.stack([_rendered(image, file, scale) for image in x])


def _rendered(image: np.ndarray, shader: Path | None, scale: int) -> np.ndarray:
    colors, height, width = image.shape
    pixels, space, channels = _FORMATS[colors]
    given = np.ones((height, width, channels), np.float32)  # with no transparency
    given[..., :colors] = image.clip(0, 1).transpose(1, 2, 0)
    tags = f"setparams=range=pc:colorspace={space}:color_primaries=bt709:color_trc=bt709"
    placebo = f"libplacebo=w={width * scale}:h={height * scale}:format={pixels}:range=pc:colorspace={space}"
    with TemporaryDirectory() as folder:  # whose name has no signs that a filter takes for its own
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
    """What a log of ffmpeg says of what went wrong: it shows the whole shader around it."""
    lines = log.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "; ".join(errors)[:400] or "it gives no image and no reason"


def _called(
    arguments: Sequence[str], given: bytes = b"", folder: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ffmpeg", "-hide_banner", *arguments], input=given, capture_output=True, cwd=folder)
