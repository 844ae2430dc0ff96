r"""Correlations of images, $\sum_u a[u]\,b[u+\delta]^\top$, with few rounding errors.

One long float32 sum over all positions would lose what a high-pass kernel needs: on photos the variance of its output
is a hundredth or less of the terms that it is added up from. So each image is laid out in one line, zeros between its
rows, in which a distance is a shift; a product of matrices sums over some rows of one image in the dtype of x, and
those sums are added in float64. As products of matrices, they take no longer than the convolution that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics._precision import has_float64, sum_in_float64

_LONGEST = 1024
"""Terms of a sum in the dtype of the images, about."""
_FEW = 4
"""Channels of which products in float64 are about as fast as in float32."""


Distance = tuple[int, int]
"""Rows down and columns to the right."""


def lay_out(x: Tensor, reach: Distance, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The lines of x, (N, C, length), for distances up to `reach`, and a view of them as images (N, C, H, W)."""
    images, channels, height, width = x.shape
    row, before = width + reach[1], _before(width, reach)
    lines = x.new_zeros(images, channels, 2 * before + height * row, dtype=dtype)
    rows = lines.narrow(2, before, height * row).unflatten(2, (height, row))
    return lines, rows[..., :width].copy_(x)


def products_dtype(x: Tensor) -> torch.dtype:
    """What to lay out images in: few channels in float64, which costs little."""
    return torch.float64 if x.shape[1] <= _FEW and has_float64(x.device) else at_least_float32(x)


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype in which to sum x: its own, or float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def correlation(one: Tensor, other: Tensor, size: tuple[int, int], reach: Distance, at: Sequence[Distance]) -> Tensor:
    """The sums of one[u] other[u + d]^T over u, (C, C') for each d of `at`, in float64; of lines of a size."""
    (height, width), before = size, _before(size[1], reach)
    row = width + reach[1]
    pieces = 1 if one.dtype == torch.float64 else -(-height * row // _LONGEST)
    at_once, parts = -(-height // pieces), []  # rows
    for top in range(0, height, at_once):
        start, length = before + top * row, min(at_once, height - top) * row
        these = one.narrow(2, start, length)
        those = (other.narrow(2, start + down * row + right, length).transpose(1, 2) for down, right in at)
        parts.append(torch.stack([sum_in_float64(torch.bmm(these, shifted), 0) for shifted in those]))
    return torch.stack(parts).sum(0)


def _before(width: int, reach: Distance) -> int:
    """Zeros before the first pixel."""
    return reach[0] * (width + reach[1]) + reach[1]
