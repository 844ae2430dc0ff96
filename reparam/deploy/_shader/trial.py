"""A user shader compared with its network, as it would be shown."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExportError
from .player import player, run_player

LEAST_PSNR_DB = 65.0
"""Of what is shown, to what torch gives: numbers between the passes have the 11 bits of float16."""
_SIZES = ((3, 5), (17, 9), (7, 41))
"""Height and width of the pictures. No side is a power of two, for which some drivers compile all of it once more."""


class Trial(NamedTuple):
    """How a file did, as `ExportReport` says it."""

    engine: str
    shapes: tuple[tuple[int, ...], ...]
    error: float
    psnr_db: float | None = None
    unchecked: str = ""


def tried(file: Path, net: nn.Module, colors: int, scale: int) -> Trial:
    """Runs a user shader where there is something that can, on pictures of odd sizes.

    Raises:
        ExportError: if it fails, or shows something else.
    """
    engine, missing = player()
    if missing:
        return Trial("", (), float("nan"), None, missing)
    run = run_player(file, scale)
    errors, psnrs = [], []
    for size in _SIZES:
        x = picture(colors, *size)
        with torch.inference_mode():
            wanted = net(x).clamp(0, 1)
        difference = torch.from_numpy(run(x.numpy())) - wanted
        errors.append(float(difference.abs().max() / wanted.max().clamp_min(1e-3)))
        psnrs.append(float(-10 * difference.double().square().mean().clamp_min(1e-12).log10()))
        if psnrs[-1] < LEAST_PSNR_DB:
            raise ExportError(
                f"{engine} shows {size[0]}x{size[1]} pixels at {psnrs[-1]:.1f} dB to what torch gives, where "
                f"{LEAST_PSNR_DB:g} dB is asked: half floats between the layers are too coarse for the network, or it "
                "is another one there"
            )
    return Trial(engine, tuple((1, colors, *size) for size in _SIZES), max(errors), min(psnrs))


def picture(colors: int, height: int, width: int) -> Tensor:
    """Soft areas with some noise, as in a film: (1, colors, height, width) of 0 to 1, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, colors, height // 4 + 2, width // 4 + 2, generator=generator)
    soft = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return 0.9 * soft + 0.1 * torch.rand(soft.shape, generator=generator)
