r"""Correlations of images, $\sum_u a[u]\,b[u+\delta]^\top$, in few products and with few rounding errors.

One long float32 sum over all positions would lose the digits that a high-pass kernel needs: on photos the variance of
its output is a hundredth or less of the terms that are summed. So each matrix product sums over a few hundred
positions in the dtype of the images, and these partial sums are added in float64.

All images are laid out in one line, with zeros between rows and between images, so a distance is a shift. Two images
of two rows, (a b c, d e f) and (g h i, j k l), for distances up to one row and one column:

                  0 0 0 0 0 a b c 0 d e f 0 0 0 0 0 g h i 0 j k l 0 0 0 0 0 ...
    the images:             a b c 0 d e f 0 0 0 0 0 g h i 0 j k l 0 0 0 0 0
    at (1, 1):              e f 0 0 0 0 0 g h i 0 ...   1 * 4 + 1 = 5 further: a meets e, b meets f
    at (1, -1):             0 d e f 0 0 0 0 0 g h ...   1 * 4 - 1 = 3 further: b meets d, c meets e

The zeros after a row are also those before the next, so a shift beyond the image's edge never reads the other edge.

If all channels of a pixel are adjacent in memory, the next pixel follows them. So a matrix with n * C columns whose row
v begins at pixel v holds b at n distances in one row, and needs one product and no copy. The pixels are split into P
pieces, and piece p takes every P-th pixel from p on: then the rows of its matrix do not overlap, which matrix libraries
require. With three pieces and three distances:

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
"""The most terms of a sum in the dtype of the images, if channels are `together` or not; both are equally precise."""
_AT_ONCE = 4
"""Sums that a CPU adds in their own dtype before it converts to float64, which takes longer than adding them."""
_FEW = 4
"""The number of channels up to which float64 products are about as fast as float32 ones."""


class Distances(NamedTuple):
    """Distances within one row: `down` rows down, and the columns from the first to the last."""

    down: int
    first: int
    last: int


class Line(NamedTuple):
    """Images laid out in one line."""

    pixels: Tensor
    """(length, C)."""
    images: Tensor
    """A view of the images with the zeros to the right and below, (N, C, H + rows, W + columns)."""
    row: int
    """The number of pixels from one pixel to the one below it."""
    before: int
    """The number of zeros before the first pixel."""
    pieces: int
    together: bool
    """Whether the channels of a pixel are adjacent in memory, or else the pixels of a channel."""

    def matrices(self, down: int, first: int, last: int) -> Tensor:
        """The line shifted by these distances (a single one unless `together`): (pieces, terms, distances * C)."""
        channels, start = self.pixels.shape[1], self.before + down * self.row + first
        terms = (len(self.pixels) - 2 * self.before) // self.pieces
        if not self.together:
            return self.pixels.narrow(0, start, terms * self.pieces).unflatten(0, (self.pieces, terms))
        rows = self.pixels.flatten().unfold(0, (last - first + 1) * channels, channels)
        return rows.narrow(0, start, terms * self.pieces).unflatten(0, (terms, self.pieces)).transpose(0, 1)


def together(x: Tensor) -> bool:
    """Whether to keep channels together: if x has this layout, or off a CPU, where launches cost more than a copy."""
    return x.device.type != "cpu" or x.is_contiguous(memory_format=torch.channels_last)


def lay_out(
    x: Tensor, reach: tuple[int, int], dtype: torch.dtype, together: bool, center: Tensor | None = None
) -> Line:
    """Lay out x (N, C, H, W) in a line for distances up to `reach`, after subtracting a center (C,), if given."""
    (images, channels, height, width), (down, right) = x.shape, reach
    row, before = width + right, down * (width + right) + right
    length = images * (height + down) * row
    pieces = -(-max(-(-length // _LONGEST[together]), 2 * right + 1) // _AT_ONCE) * _AT_ONCE
    size = 2 * before + -(-length // pieces) * pieces, channels
    pixels = x.new_zeros(size, dtype=dtype) if together else x.new_zeros(size[::-1], dtype=dtype).t()
    rows = pixels.narrow(0, before, length).unflatten(0, (images, height + down, row)).permute(0, 3, 1, 2)
    pictures = rows[..., :height, :width]
    if center is None:
        pictures.copy_(x)
    else:
        torch.sub(x, center.to(dtype)[:, None, None], out=pictures)
    return Line(pixels, rows, row, before, pieces, together)


def products_dtype(x: Tensor) -> torch.dtype:
    """The dtype to lay out images in: float64 for few channels, where it costs little."""
    return torch.float64 if x.shape[1] <= _FEW and has_float64(x.device) else at_least_float32(x)


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype in which to sum x: its own, or float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def correlation(one: Line, other: Line, at: Sequence[Distances]) -> Tensor:
    """The sums of one[u] other[u + d]^T over u, (C, distances, C'), in float64. Both lines have the same reach."""
    if not other.together:
        at = [Distances(down, n, n) for down, first, last in at for n in range(first, last + 1)]
    these = one.matrices(0, 0, 0).transpose(1, 2)
    sums = torch.cat([torch.bmm(these, other.matrices(*some)) for some in at], 2)
    if sums.device.type == "cpu":
        sums = sums.unflatten(0, (-1, _AT_ONCE)).sum(1)
    return sum_in_float64(sums, 0).unflatten(1, (-1, other.pixels.shape[1]))
