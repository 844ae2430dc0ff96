"""Compares the picture that a shader shows with its network's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExportError
from .._runners import Run

LEAST_PSNR_DB = 65.0
"""The lowest allowed PSNR to torch's output: values between passes have the 11 bits of float16."""
_SIZES = ((3, 5), (17, 9), (7, 41))
"""Height and width of the pictures. No side is a power of two, because some drivers compile again for those."""


class Trial(NamedTuple):
    """The outcome of a trial, in the terms of `ExportReport`."""

    engine: str
    shapes: tuple[tuple[int, ...], ...]
    error: float
    psnr_db: float | None = None
    unchecked: str = ""


def tried(engine: str, missing: str, make: Callable[[], Run], net: nn.Module, colors: int) -> Trial:
    """Run a shader on pictures of odd sizes, if something here can, and compare it with its network.

    Args:
        engine: the program that runs it.
        missing: why no program can, if so.
        make: makes the function from an image of 0 to 1 to the picture.
        net: the network.
        colors: the colors of the network.

    Raises:
        ExportError: if it fails, or shows something else.
    """
    if missing:
        return Trial("", (), float("nan"), None, missing)
    shapes = tuple((1, colors, *size) for size in _SIZES)
    try:
        run = make()
    except Exception as problem:  # engines raise anything
        raise ExportError(f"{engine} cannot load the file that was written: {problem}") from problem
    errors, psnrs = zip(*[_compared(engine, run, net, picture(*shape[1:])) for shape in shapes])
    return Trial(engine, shapes, max(errors), min(psnrs))


def _compared(engine: str, run: Run, net: nn.Module, x: Tensor) -> tuple[float, float]:
    """The largest difference relative to the largest value, and the PSNR."""
    with torch.inference_mode():
        wanted = net(x).clamp(0, 1)
    try:
        shown = torch.from_numpy(run(x.numpy())).clamp(0, 1)
    except Exception as problem:  # engines raise anything
        raise ExportError(f"{engine} fails for an input of {tuple(x.shape)}: {problem}") from problem
    difference = shown - wanted
    psnr_db = float(-10 * difference.double().square().mean().clamp_min(1e-12).log10())
    if not psnr_db >= LEAST_PSNR_DB:
        raise ExportError(
            f"{engine} shows an input of {tuple(x.shape)} at {psnr_db:.1f} dB to torch's output, but at least "
            f"{LEAST_PSNR_DB:g} dB is needed: float16 between the layers is too coarse for this network, or the "
            "shader computes something else"
        )
    return float(difference.abs().max() / wanted.max().clamp_min(1e-3)), psnr_db


def picture(colors: int, height: int, width: int) -> Tensor:
    """A fixed picture of soft areas with some noise, as in a film: (1, colors, height, width), from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, colors, height // 4 + 2, width // 4 + 2, generator=generator)
    soft = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return 0.9 * soft + 0.1 * torch.rand(soft.shape, generator=generator)
