"""A network's file, opened: what it says of itself, and what is measured where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SpecError
from ._engines import open_engine
from ._notes import About, about
from ._receptive import locality
from ._runners import Run


class Opened(NamedTuple):
    """A file as `Upscaler` runs it."""

    run: Run
    """Of one image, of any size up to the file's."""
    scale: int
    colors: int
    radius: int
    period: int
    size: tuple[int, int] | None
    """Height and width of the images that the file takes; None if they are free."""


def opened(file: Path, engine: str, threads: int, tile: int, scale: int | None, colors: int | None) -> Opened:
    """Opens a file of any program.

    What `export` and `quantize` wrote says all of itself. Of another file, scale, radius and period are measured, and
    so are the colors, if its input says how many channels it has.

    Args:
        file: of one of the `FILE_ENGINES`.
        engine: that is to run it.
        threads: how many it may use; 0 leaves that to it.
        tile: 0 if nobody asks for radius and period.
        scale: as told by the user.
        colors: likewise.

    Raises:
        SpecError: if there is no such file, the user and the file say different things, or the file does not say, and
            nothing measures, what must be known.
    """
    if not file.exists():
        raise SpecError(f"there is no file {file}")
    run = open_engine(file, engine, threads)
    said = about(file)
    colors = _colors(file, said, colors)
    size = _size(said)
    run = _one_by_one(run, file.name, said)
    side = size or (48, 48)
    scale = _agreed(file, "scale", scale, said.note.get("scale") or _measured_scale(file, run, colors, side))
    radius, period = _locality(file, run, said, size, colors) if tile else (0, 1)
    return Opened(run, scale, colors, radius, period, size)


def _colors(file: Path, said: About, told: int | None) -> int:
    of_input = said.shape[1] if said.shape and len(said.shape) == 4 else None
    found = said.note.get("colors") or of_input or told
    if found is None:
        raise SpecError(f"{file} does not say its colors: pass colors=, 1 or 3 (--colors)")
    colors = _agreed(file, "colors", told, found)
    if colors not in (1, 3):
        raise SpecError(f"{file} takes images of {colors} channels, where an image has 1 or 3")
    return colors


def _size(said: About) -> tuple[int, int] | None:
    height, width = said.shape[2:] if said.shape and len(said.shape) == 4 else (None, None)
    return None if height is None or width is None else (height, width)


def _agreed(file: Path, name: str, told: int | None, found: Any) -> int:
    """What is known, if the user did not say otherwise."""
    if told is not None and told != int(found):
        raise SpecError(f"{file} has {name}={int(found)}, but got {name}={told}; leave it out")
    return int(found)


def _one_by_one(run: Run, name: str, said: About) -> Run:
    """Runs one image of up to the file's size, continued by its last pixels, as often as its batch asks for."""
    batch, (height, width) = (said.shape or (None,))[0] or 1, _size(said) or (None, None)
    if height is None or width is None:
        return run if batch == 1 else lambda x: run(np.ascontiguousarray(x.repeat(batch, 0)))[:1]

    def engine(x: np.ndarray) -> np.ndarray:
        more = (height - x.shape[2], width - x.shape[3])
        if min(more) < 0:
            raise SpecError(
                f"{name} takes images of {height} x {width} pixels, but got {x.shape[2]} x {x.shape[3]}, and whole "
                "images (tile=0) cannot be cut"
            )
        whole = np.pad(x, ((0, batch - 1), (0, 0), (0, more[0]), (0, more[1])), mode="edge")
        y = run(whole)
        scale = y.shape[2] // height
        return y[:1, :, : scale * x.shape[2], : scale * x.shape[3]]

    return engine


def _measured_scale(file: Path, run: Run, colors: int, side: tuple[int, int]) -> int:
    x = np.random.default_rng(0).random((1, colors, *side), dtype=np.float32)
    try:
        y = run(x)
    except Exception as problem:  # engines raise whatever they met
        raise SpecError(f"{file} fails for an image of {side[0]} x {side[1]} pixels: {problem}") from problem
    scale = y.shape[2] // side[0] if y.ndim == 4 else 0
    if y.shape != (1, colors, scale * side[0], scale * side[1]) or not scale:
        raise SpecError(f"{file} makes {y.shape} of {x.shape}, which is not the image enlarged by a whole number")
    return scale


def _locality(file: Path, run: Run, said: About, size: tuple[int, int] | None, colors: int) -> tuple[int, int]:
    """Radius and period."""
    note = said.note
    if "radius" in note:
        return int(note["radius"]), int(note.get("period", 1))
    if "scale" in note or size:  # it was measured when the file was written, or cannot be
        raise SpecError(
            f"{file} does not say its radius, as files of `export` do, without which it cannot be run in tiles; "
            "take whole images: tile=0"
        )
    return locality(_Measured(run), colors)


class _Measured(nn.Module):
    """An engine as a network, in float32 alone."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __deepcopy__(self, memo: Any) -> _Measured:
        return self  # an engine cannot be copied, and has no weights to change

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"an engine takes float32, but got {x.dtype}")
        return torch.from_numpy(self.run(x.numpy()))
