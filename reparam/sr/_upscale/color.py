"""The channels of an image that go through the network, and how the result becomes an image again."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
"""BT.601: Y, Cb and Cr less their offsets, in units of 255, of RGB of 0 to 1."""
_RGB = np.linalg.inv(_YCBCR)
_BLACK, _WHITE = 16 / 255, 235 / 255
"""Y of black and of white."""


def split(x: Tensor, colors: int) -> Tensor:
    """The input of a network of 1 or 3 colors for an image (N, C, h, w) of 0 to 1: gray or RGB, perhaps with alpha."""
    rgb = _rgb(x)
    return rgb if colors == 3 else _mix(_YCBCR[:1], rgb) + _BLACK


def join(y: Tensor, x: Tensor, colors: int, scale: int, equal: Tensor | None = None) -> Tensor:
    """Make the large image from the network's output and the small image.

    Args:
        y: (N, colors, scale * h, scale * w).
        x: (N, C, h, w), as for `split`.
        colors: of the network.
        scale: of the network.
        equal: (N, 1, 1, 1), which of the images are RGB with three equal channels, and stay so.
    """
    gray, see_through = x.shape[1] < 3, x.shape[1] in (2, 4)
    if colors == 1 and gray:
        y = (y - _BLACK) / (_WHITE - _BLACK)
    elif colors == 1:
        y = _mix(_RGB, torch.cat([y - _BLACK, bicubic(_mix(_YCBCR[1:], _rgb(x)), scale)], 1))
    if y.shape[1] == 3 and (gray or equal is not None):
        mean = (y[:, :1] + y[:, 1:2] + y[:, 2:]) / 3
        y = mean if equal is None else torch.where(equal.to(y.device), mean, y)
    return torch.cat([y, bicubic(x[:, -1:], scale)], 1) if see_through else y


def _rgb(x: Tensor) -> Tensor:
    return x[:, :3] if x.shape[1] > 2 else x[:, :1].expand(-1, 3, -1, -1)


def _mix(matrix: np.ndarray, x: Tensor) -> Tensor:
    """The matrix times the colors of x (N, C, h, w), summed in one order wherever a pixel lies."""
    return torch.stack([sum(weight * x[:, index] for index, weight in enumerate(row)) for row in matrix.tolist()], 1)


def spread(x: Tensor, steps: int) -> Tensor:
    """Give fully transparent pixels, up to `steps` away, the colors of the visible ones next to them.

    Otherwise the network, and interpolation, would mix the edge with hidden colors, which are black in most files.
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


def bicubic(x: Tensor, scale: int) -> Tensor:
    """Enlarge (N, C, h, w) by Keys' cubic (a = -0.5), edges repeated.

    Every pixel is the same sum in the same order wherever its tile begins, which no library's function promises: they
    work out fractional positions from the edge.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        near = torch.arange(-2, size + 2, device=x.device).clamp_(0, size - 1)
        padded = x.index_select(axis, near)
        phases = []
        for phase in range(scale):
            position = (phase + 0.5) / scale - 0.5  # of the new pixel, from the center of the old one
            first = math.floor(position) - 1
            taps = (_cubic(first + k - position) * padded.narrow(axis, first + k + 2, size) for k in range(4))
            phases.append(sum(taps, torch.zeros((), device=x.device)))
        x = torch.stack(phases, axis + 1).flatten(axis, axis + 1)
    return x


def _cubic(distance: float) -> float:
    d = abs(distance)
    return 1 - 2.5 * d**2 + 1.5 * d**3 if d <= 1 else 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3
