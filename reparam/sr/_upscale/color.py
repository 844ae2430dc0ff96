"""What of an image goes through the network, and how the result becomes an image again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
"""BT.601: Y, Cb and Cr less their offsets, in units of 255, of RGB of 0 to 1."""
_RGB = np.linalg.inv(_YCBCR)
_BLACK, _WHITE = 16 / 255, 235 / 255
"""Y of black and of white."""


class Coloring(NamedTuple):
    """A way to run an image (N, C, h, w) of 0 to 1."""

    split: Callable[[Tensor], Tensor]
    """What the network gets."""
    join: Callable[[Tensor, Tensor], Tensor]
    """The large image, of the network's output and of the small image."""


def coloring(channels: int, colors: int, scale: int) -> Coloring:
    """The way of an image of 1 to 4 channels (grey or RGB, then perhaps alpha) through a network of 1 or 3 colours."""
    grey, see_through = channels < 3, channels in (2, 4)
    split, join = _WAYS[grey, colors](scale)
    if not see_through:
        return Coloring(split, join)
    return Coloring(
        lambda x: split(x[:, :-1]),
        lambda y, x: torch.cat([join(y, x[:, :-1]), bicubic(x[:, -1:], scale)], 1),
    )


def spread(x: Tensor, steps: int) -> Tensor:
    """Gives pixels that alpha hides, up to so many steps away, the colours of those that it shows.

    Else the network, and interpolation, would draw the edge to what is behind, which is black in most files.
    """
    if x.shape[1] in (1, 3):
        return x
    colors, shown = x[:, :-1], (x[:, -1:] > 0).to(x)
    for _ in range(steps if shown.any() else 0):
        if shown.all():
            break
        means = avg_pool2d(torch.cat([colors * shown, shown], 1), 3, 1, 1)
        share = means[:, -1:]
        colors = torch.where((shown == 0) & (share > 0), means[:, :-1] / share.clamp(min=1 / 9), colors)
        shown = (share > 0).to(x)
    return torch.cat([colors, x[:, -1:]], 1)


def equalled(y: Tensor, equal: Tensor | None) -> Tensor:
    """Takes the mean of three colours in the images (N, 1, 1, 1) of which they were equal."""
    if equal is None:
        return y
    mean = (y[:, :1] + y[:, 1:2] + y[:, 2:3]) / 3
    return torch.cat([torch.where(equal.to(y.device), mean, y[:, :3]), y[:, 3:]], 1)


def bicubic(x: Tensor, scale: int) -> Tensor:
    """Enlarges (N, C, h, w) by Keys' cubic (a = -0.5), edges repeated.

    Every pixel is the same sum in the same order wherever its tile begins, which no library's function promises: they
    work out fractional positions from the edge.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        near = torch.arange(-2, size + 2, device=x.device).clamp_(0, size - 1)
        padded = x.index_select(axis, near)
        phases = []
        for phase in range(scale):
            position = (phase + 0.5) / scale - 0.5  # of the new pixel, from the centre of the old one
            first = math.floor(position) - 1
            taps = (_cubic(first + k - position) * padded.narrow(axis, first + k + 2, size) for k in range(4))
            phases.append(sum(taps, torch.zeros((), device=x.device)))
        x = torch.stack(phases, axis + 1).flatten(axis, axis + 1)
    return x


def _cubic(distance: float) -> float:
    d = abs(distance)
    return 1 - 2.5 * d**2 + 1.5 * d**3 if d <= 1 else 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3


def _as_it_is(scale: int) -> Coloring:
    return Coloring(lambda x: x, lambda y, x: y)


def _grey_as_rgb(scale: int) -> Coloring:
    return Coloring(lambda x: x.expand(-1, 3, -1, -1), lambda y, x: (y[:, :1] + y[:, 1:2] + y[:, 2:]) / 3)


def _grey_as_luma(scale: int) -> Coloring:
    span = _WHITE - _BLACK
    return Coloring(lambda x: _BLACK + span * x, lambda y, x: (y - _BLACK) / span)


def _rgb_by_luma(scale: int) -> Coloring:
    def split(x: Tensor) -> Tensor:
        return _mix(_YCBCR[:1], x) + _BLACK

    def join(y: Tensor, x: Tensor) -> Tensor:
        chroma = bicubic(_mix(_YCBCR[1:], x), scale)
        return _mix(_RGB, torch.cat([y - _BLACK, chroma], 1))

    return Coloring(split, join)


def _mix(matrix: np.ndarray, x: Tensor) -> Tensor:
    """The matrix times the colours of x (N, C, h, w), summed in one order wherever a pixel lies."""
    return torch.stack([sum(weight * x[:, index] for index, weight in enumerate(row)) for row in matrix.tolist()], 1)


_WAYS = {(False, 3): _as_it_is, (True, 3): _grey_as_rgb, (True, 1): _grey_as_luma, (False, 1): _rgb_by_luma}
