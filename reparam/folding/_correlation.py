r"""Correlations of images, $\sum_u a[u]\,b[u+\delta]^\top$, in few products and with few rounding errors.

One long float32 sum over all positions would lose what a high-pass kernel needs: on photos the variance of its output
is a hundredth or less of the terms that it is added up from. So a product of matrices sums over some hundred
positions in the dtype of the images, and those sums are added in float64.

All images are laid out in one line, all channels of a pixel together and zeros between rows and images, so that a
distance is a shift. Images of two rows, a b c and d e f, g h i and j k l, for distances up to one row and one column:

                  0 0 0 0 0 a b c 0 d e f 0 0 0 0 0 g h i 0 j k l 0 0 0 0 0 ...
    all of it:              a b c 0 d e f 0 0 0 0 0 g h i 0 j k l 0 0 0 0 0
    at (1, 1):              e f 0 0 0 0 0 g h i 0 ...   1 * 4 + 1 = 5 farther: a meets e, b meets f
    at (1, -1):             0 d e f 0 0 0 0 0 g h ...   1 * 4 - 1 = 3 farther: b meets d, c meets e

The zeros after a row are also those before the next: what leaves the image on one side does not come back on the other.

Neighbours are side by side in memory. So a matrix whose row v has n * C columns and begins at pixel v is b at n
distances of one row, which cost one product and no copy. Of P pieces, piece p takes every P-th pixel from p on, since
then the rows of its matrix do not overlap, as libraries insist on. Of three pieces and three distances:

    a of piece 0:   a . . 0 . . f . .        b of piece 0:   0 a b   c 0 d   e f 0      (the distances -1, 0, 1)
    a of piece 1:   . b . . d . . 0 .        b of piece 1:   a b c   0 d e   f 0 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics._precision import has_float64, sum_in_float64

_LONGEST = 768
"""Terms of a sum in the dtype of the images, at most."""
_FEW = 4
"""Channels of which products in float64 are about as fast as in float32."""


class Distances(NamedTuple):
    """Of one row: so many down, and the columns from the first to the last."""

    down: int
    first: int
    last: int


class Line(NamedTuple):
    """Images that are laid out in one line."""

    pixels: Tensor
    """(length, C)."""
    images: Tensor
    """A view of them, (N, C, H, W)."""
    row: int
    """Pixels from one to that below it."""
    before: int
    """Zeros before the first pixel."""
    pieces: int

    def matrices(self, down: int, first: int, last: int) -> Tensor:
        """The line from some distances on, (pieces, terms, distances * C)."""
        channels, start = self.pixels.shape[1], self.before + down * self.row + first
        terms = (len(self.pixels) - 2 * self.before) // self.pieces
        rows = self.pixels.flatten().unfold(0, (last - first + 1) * channels, channels)
        return rows.narrow(0, start, terms * self.pieces).unflatten(0, (terms, self.pieces)).transpose(0, 1)


def lay_out(x: Tensor, reach: tuple[int, int], dtype: torch.dtype) -> Line:
    """The line of x (N, C, H, W), for distances up to `reach`."""
    (images, channels, height, width), (down, right) = x.shape, reach
    row, before = width + right, down * (width + right) + right
    length = images * (height + down) * row
    pieces = max(-(-length // _LONGEST), 2 * right + 1)
    pixels = x.new_zeros(2 * before + -(-length // pieces) * pieces, channels, dtype=dtype)
    rows = pixels.narrow(0, before, length).unflatten(0, (images, height + down, row))
    return Line(pixels, rows[:, :height, :width].permute(0, 3, 1, 2).copy_(x), row, before, pieces)


def products_dtype(x: Tensor) -> torch.dtype:
    """What to lay out images in: few channels in float64, which costs little."""
    return torch.float64 if x.shape[1] <= _FEW and has_float64(x.device) else at_least_float32(x)


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype in which to sum x: its own, or float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def correlation(one: Line, other: Line, at: Sequence[Distances]) -> Tensor:
    """The sums of one[u] other[u + d]^T over u, (C, distances, C'), in float64; of lines for the same distances."""
    these = one.matrices(0, 0, 0).transpose(1, 2)
    sums = [sum_in_float64(torch.bmm(these, other.matrices(*some)), 0) for some in at]
    return torch.cat(sums, 1).unflatten(1, (-1, other.pixels.shape[1]))
