"""The ring around an image: the positions outside of it whose patches reach into it.

A position d outside of the image reaches `few` = k // 2 + 1 - d rows into it, with its last `few` rows of taps if it is
above and its first ones if it is below. So the positions of one d are a line, and two opposite lines go together. Of a
5x5 kernel, by `few`; the corners belong to the lines above and below, as each position must count once:

    1 1 1 1 1 1 1 1 1     axis 2
    2 2 2 2 2 2 2 2 2
    1 2 x x x x x 2 1     axis 3
    1 2 x x x x x 2 1
    2 2 2 2 2 2 2 2 2     axis 2
    1 1 1 1 1 1 1 1 1
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Sides(NamedTuple):
    """Two lines of positions just outside of the image, on opposite sides, whose patches reach into it."""

    axis: int
    """Of x (N, C, H, W), across the lines."""
    few: int
    """Rows or columns of x, and taps across the lines, that meet."""
    windows: Tensor
    """The patches, without what is zero anyway: (2, N, C, ty, tx, position)."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the two lines read of x (N, C, H, W): its first and its last rows or columns."""
        return x.narrow(self.axis, 0, self.few), x.narrow(self.axis, x.shape[self.axis] - self.few, self.few)

    def taps(self, by_tap: Tensor) -> tuple[Tensor, Tensor]:
        """The part of (C, ty, tx, C, ty', tx') whose taps read that: the last ones above and before, the first ones
        below and after."""
        axis, few = self.axis - 1, self.few
        start = by_tap.shape[axis] - few
        first, last = by_tap.narrow(axis, 0, few), by_tap.narrow(axis, start, few)
        return last.narrow(axis + 3, start, few), first.narrow(axis + 3, 0, few)


def ring(x: Tensor, kernel_size: tuple[int, int]) -> Iterator[Sides]:
    """The ring around the image, a pair of sides at a time; lines above and below go over the corners."""
    high, wide = kernel_size
    for few in range(high // 2, 0, -1):
        sides = Sides(2, few, x)
        # Positions go over both corners, k // 2 farther than the image, and their patches as far again.
        padded = F.pad(torch.stack(sides.parts(x)), (2 * (wide // 2),) * 2)
        yield sides._replace(windows=padded.unfold(4, wide, 1).transpose(4, 5))
    for few in range(wide // 2, 0, -1):
        sides = Sides(3, few, x)
        padded = F.pad(torch.stack(sides.parts(x)), (0, 0, high // 2, high // 2))
        yield sides._replace(windows=padded.unfold(3, high, 1).permute(0, 1, 2, 5, 4, 3))


def unwindow(sides: Sides, values: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """The transpose of `ring`: values (2, N, C, ty, tx, position) go back to where they were read."""
    high, wide = kernel_size
    rows = sides.axis == 2
    padding, size = (2 * (wide // 2), wide) if rows else (high // 2, high)
    by_tap = values.unbind(4 if rows else 3)  # each (2, N, C, few, position)
    positions = values.shape[5]
    padded = values.new_zeros(*by_tap[0].shape[:4], positions + size - 1)
    for tap, of_tap in enumerate(by_tap):
        padded.narrow(4, tap, positions).add_(of_tap)
    parts = padded.narrow(4, padding, positions + size - 1 - 2 * padding)
    return parts if rows else parts.transpose(3, 4)
