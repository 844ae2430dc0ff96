"""What of an image goes through the network, and how the result becomes an image again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
"""BT.601: Y, Cb and Cr less their offsets, in units of 255, of RGB of 0 to 1."""
_RGB = np.linalg.inv(_YCBCR)
_BLACK, _WHITE = 16 / 255, 235 / 255
"""Y of black and of white."""


class Coloring(NamedTuple):
    """A way to run an image (1, C, h, w) of 0 to 1."""

    split: Callable[[np.ndarray], np.ndarray]
    """What the network gets."""
    join: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """The large image, of the network's output and of the small image."""


def coloring(channels: int, colors: int, scale: int) -> Coloring:
    """The way of an image of 1 to 4 channels (grey or RGB, then perhaps alpha) through a network of 1 or 3 colours."""
    grey, see_through = channels < 3, channels in (2, 4)
    split, join = _WAYS[grey, colors](scale)
    if not see_through:
        return Coloring(split, join)
    return Coloring(
        lambda x: split(x[:, :-1]),
        lambda y, x: np.concatenate([join(y, x[:, :-1]), bicubic(x[:, -1:], scale)], axis=1),
    )


def bicubic(x: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges (1, C, h, w) by Keys' cubic (a = -0.5), edges repeated.

    Every pixel is the same sum in the same order wherever its tile begins, which no library's function promises: they
    work out fractional positions from the edge.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        padded = np.pad(x, [(2, 2) if other == axis else (0, 0) for other in range(4)], mode="edge")
        phases = []
        for phase in range(scale):
            position = (phase + 0.5) / scale - 0.5  # of the new pixel, from the centre of the old one
            first = math.floor(position) - 1
            taps = (padded.take(range(first + k + 2, first + k + 2 + size), axis) for k in range(4))
            phases.append(sum(_cubic(first + k - position) * tap for k, tap in enumerate(taps)))
        x = np.stack(phases, axis + 1).reshape(*x.shape[:axis], scale * size, *x.shape[axis + 1 :])
    return x


def _cubic(distance: float) -> float:
    d = abs(distance)
    return 1 - 2.5 * d**2 + 1.5 * d**3 if d <= 1 else 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3


def _as_it_is(scale: int) -> Coloring:
    return Coloring(lambda x: x, lambda y, x: y)


def _grey_as_rgb(scale: int) -> Coloring:
    return Coloring(lambda x: x.repeat(3, axis=1), lambda y, x: y.mean(axis=1, keepdims=True))


def _grey_as_luma(scale: int) -> Coloring:
    span = _WHITE - _BLACK
    return Coloring(lambda x: _BLACK + span * x, lambda y, x: (y - _BLACK) / span)


def _rgb_by_luma(scale: int) -> Coloring:
    def split(x: np.ndarray) -> np.ndarray:
        return _mix(_YCBCR[:1], x) + _BLACK

    def join(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        chroma = bicubic(_mix(_YCBCR[1:], x), scale)
        return _mix(_RGB, np.concatenate([y - _BLACK, chroma], axis=1))

    return Coloring(split, join)


def _mix(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The matrix times the colours of x (1, C, h, w), summed in one order wherever a pixel lies."""
    return np.stack([sum(weight * x[:, index] for index, weight in enumerate(row)) for row in matrix.tolist()], axis=1)


_WAYS = {(False, 3): _as_it_is, (True, 3): _grey_as_rgb, (True, 1): _grey_as_luma, (False, 1): _rgb_by_luma}
