r"""Correlations of images, $\sum_u a[u]\,b[u+\delta]^\top$, in few products and with few rounding errors.

One long float32 sum over all positions would lose what a high-pass kernel needs: on photos the variance of its output
is a hundredth or less of the terms that it is added up from. So a product of matrices sums over some hundreds of
positions in the dtype of the images, and those sums are added in float64.

All images are laid out in one line, zeros between rows and images, so that a distance is a shift. Images of two rows,
a b c and d e f, g h i and j k l, for distances up to one row and one column:

                  0 0 0 0 0 a b c 0 d e f 0 0 0 0 0 g h i 0 j k l 0 0 0 0 0 ...
    all of it:              a b c 0 d e f 0 0 0 0 0 g h i 0 j k l 0 0 0 0 0
    at (1, 1):              e f 0 0 0 0 0 g h i 0 ...   1 * 4 + 1 = 5 farther: a meets e, b meets f
    at (1, -1):             0 d e f 0 0 0 0 0 g h ...   1 * 4 - 1 = 3 farther: b meets d, c meets e

The zeros after a row are also those before the next: what leaves the image on one side does not come back on the other.

If all channels of a pixel are together in memory, its neighbours are beside it. So a matrix whose row v has n * C
columns and begins at pixel v is b at n distances of one row, which cost one product and no copy. Of P pieces, piece p
takes every P-th pixel from p on, since then the rows of its matrix do not overlap, as libraries insist on. Of three
pieces and three distances:

    a of piece 0:   a . . 0 . . f . .        b of piece 0:   0 a b   c 0 d   e f 0      (the distances -1, 0, 1)
    a of piece 1:   . b . . d . . 0 .        b of piece 1:   a b c   0 d e   f 0 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics._precision import has_float64, sum_in_float64

_LONGEST = {True: 384, False: 768}
"""Terms of a sum in the dtype of the images, at most, if the channels are together or not: for the same precision."""
_AT_ONCE = 4
"""Sums that a CPU adds in their own dtype before float64, as its pass from one to the other takes longer than these."""
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
    """A view of them and of the zeros right of them and below, (N, C, H + rows, W + columns)."""
    row: int
    """Pixels from one to that below it."""
    before: int
    """Zeros before the first pixel."""
    pieces: int
    together: bool
    """Whether all channels of a pixel are side by side in memory, or all pixels of a channel."""

    def matrices(self, down: int, first: int, last: int) -> Tensor:
        """The line from some distances on, of one only unless `together`: (pieces, terms, distances * C)."""
        channels, start = self.pixels.shape[1], self.before + down * self.row + first
        terms = (len(self.pixels) - 2 * self.before) // self.pieces
        if not self.together:
            return self.pixels.narrow(0, start, terms * self.pieces).unflatten(0, (self.pieces, terms))
        rows = self.pixels.flatten().unfold(0, (last - first + 1) * channels, channels)
        return rows.narrow(0, start, terms * self.pieces).unflatten(0, (terms, self.pieces)).transpose(0, 1)


def together(x: Tensor) -> bool:
    """How to lay out images: `together` where launches are dear or x is so already; a CPU takes too long to turn it."""
    return x.device.type != "cpu" or x.is_contiguous(memory_format=torch.channels_last)


def lay_out(
    x: Tensor, reach: tuple[int, int], dtype: torch.dtype, together: bool, centre: Tensor | None = None
) -> Line:
    """The line of x (N, C, H, W), for distances up to `reach`; of x less a centre (C,), if there is one."""
    (images, channels, height, width), (down, right) = x.shape, reach
    row, before = width + right, down * (width + right) + right
    length = images * (height + down) * row
    pieces = -(-max(-(-length // _LONGEST[together]), 2 * right + 1) // _AT_ONCE) * _AT_ONCE
    size = 2 * before + -(-length // pieces) * pieces, channels
    pixels = x.new_zeros(size, dtype=dtype) if together else x.new_zeros(size[::-1], dtype=dtype).t()
    rows = pixels.narrow(0, before, length).unflatten(0, (images, height + down, row)).permute(0, 3, 1, 2)
    pictures = rows[..., :height, :width]
    if centre is None:
        pictures.copy_(x)
    else:
        torch.sub(x, centre.to(dtype)[:, None, None], out=pictures)
    return Line(pixels, rows, row, before, pieces, together)


def products_dtype(x: Tensor) -> torch.dtype:
    """What to lay out images in: few channels in float64, which costs little."""
    return torch.float64 if x.shape[1] <= _FEW and has_float64(x.device) else at_least_float32(x)


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype in which to sum x: its own, or float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def correlation(one: Line, other: Line, at: Sequence[Distances]) -> Tensor:
    """The sums of one[u] other[u + d]^T over u, (C, distances, C'), in float64; of lines for the same distances."""
    if not other.together:
        at = [Distances(down, n, n) for down, first, last in at for n in range(first, last + 1)]
    these = one.matrices(0, 0, 0).transpose(1, 2)
    sums = torch.cat([torch.bmm(these, other.matrices(*some)) for some in at], 2)
    if sums.device.type == "cpu":
        sums = sums.unflatten(0, (-1, _AT_ONCE)).sum(1)
    return sum_in_float64(sums, 0).unflatten(1, (-1, other.pixels.shape[1]))
