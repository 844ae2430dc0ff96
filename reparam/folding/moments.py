r"""Patch moments: the statistics of an input from which those of any linear map of its patches follow.

Let $p(q)$ be the patch under output position q, of all taps t and channels c, and z = W p + b one output of a
convolution. Then over all M positions of all images

$$E[z] = W\,E[p] + b,\qquad \mathrm{Var}[z] = W\,\mathrm{Cov}[p]\,W^\top, \quad (1)$$

so one covariance serves every batch norm of every branch, nested ones included, and no branch has to run. Except at the
border, its entries depend only on the distance between two taps:

$$\sum_{q\in\mathrm{image}} x[q+t]\,x[q+t']^\top =
  R[t'-t] - \sum_{q\notin\mathrm{image}} x[q+t]\,x[q+t']^\top, \quad (2)$$
$$R[\delta] = \sum_u x[u]\,x[u+\delta]^\top = R[-\delta]^\top. \quad (3)$$

R is one correlation of x with itself over half the distances. The sum on the right of (2) runs over a ring as wide as
half the kernel, where only a few taps reach the image. For a 3x3 kernel:

    r r r r r r r     x: the image                                 . . . . .     the distances between two taps:
    r x x x x x r     r: the ring, whose patches reach into it     . . . . .     o is computed,
    r x x x x x r        with one row or column of their taps,     . . o o o     . follows by (3)
    r x x x x x r        in the corners with one tap               o o o o o
    r r r r r r r                                                  o o o o o

The input is centered first, x = x' + c inside the image: otherwise the variance would be a small difference of large
numbers and lost in float32. Outside the image x is zero and not c. So a patch is p = (u, e), with u the patch of x' and
e the patch of an image of ones, and

$$z = W u + (W c)\,e + b. \quad (4)$$

The cross terms of e and u are sums of x' over boxes, in which v = q + t, q and q + t' are all inside the image:

$$\sum_q u[q, t]\,e[q, t'] = \sum_{v \in \mathrm{box}(t, t')} x'[v]. \quad (5)$$

The gradient to x', from the gradients G to (2) and H to (5), reads the same sums backwards:

$$\frac{\partial}{\partial x'[v]} = \sum_{t, t'} (G + G^\top)[t, t']\,x'[v + t' - t] - \mathrm{ring} +
  \sum_{t, t'\,:\,v \in \mathrm{box}(t, t')} H[t, t']. \quad (6)$$
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra._kernels import Kernel
from ..algebra._spec import ConvSpec
from ..numerics._precision import float64_device, in_float64, rounded_like, sum_in_float64, with_all_digits
from ._correlation import Distances, at_least_float32, correlation, lay_out, products_dtype, together
from ._ring import Lines, ring


def reaches_across(spec: ConvSpec, size: tuple[int, ...]) -> bool:
    """Whether a patch outside an image of this size can reach across the whole image, which the ring cannot handle."""
    return any(n < k // 2 for n, k in zip(size, spec.kernel_size))


def why_no_moments(spec: ConvSpec) -> str | None:
    """Why patch moments do not exist for this geometry, or None if they do."""
    if spec.ndim != 2:
        return f"ndim={spec.ndim} (2 is needed)"
    if any(s != 1 for s in spec.stride):
        return f"stride={spec.stride} (1 is needed)"
    if any(d != 1 for d in spec.dilation):
        return f"dilation={spec.dilation} (1 is needed)"
    if spec.groups != 1:
        return f"groups={spec.groups} (1 is needed)"
    if any(k % 2 == 0 for k in spec.kernel_size):
        return f"kernel_size={spec.kernel_size} (odd numbers are needed)"
    if not spec.keeps_size:
        return f"padding={spec.padding} (the size must be kept)"
    if spec.padding_mode != "zeros" and spec.kernel_size != (1, 1):
        return f"padding_mode={spec.padding_mode!r} ('zeros' is needed)"
    return None


@dataclass(frozen=True)
class PatchMoments:
    """Mean and covariance of the patches (u, e). D = (C + 1) * taps, ordered by channel, then by tap."""

    count: int
    """Number of patches: images times output positions."""
    center: Tensor
    """The mean c, (C,), that was subtracted from the input."""
    mean: Tensor
    """Mean of the patches, (D,), float64."""
    covariance: Tensor
    """Covariance of the patches, (D, D), float64: for a high-pass kernel, W Cov W^T is far smaller than its terms."""
    rounded: Tensor
    """The covariance in the dtype of the input: precise enough for the gradient of a kernel, and half the memory."""

    def of(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, both (out,), of the output of a kernel (out, C, *size) with all taps."""
        center = in_float64(self.center)
        mean, var = _OutputMoments.apply(kernel.weight, self.mean, self.covariance, self.rounded, center)
        return rounded_like(mean, self.center) + kernel.bias.to(self.center), rounded_like(var, self.center)


def patch_moments(x: Tensor, kernel_size: tuple[int, int]) -> PatchMoments:
    """Compute the moments of the patches of x (N, C, H, W) for a zero-padded convolution that keeps the size.

    Differentiable in x. For x in half precision, they are computed in float32.
    """
    center = x.detach().to(at_least_float32(x)).mean((0, 2, 3))
    mean, covariance = _Moments.apply(x, center, kernel_size)
    return PatchMoments(x.numel() // x.shape[1], center, mean, covariance, covariance.to(center.dtype))


class _Moments(torch.autograd.Function):
    """Mean (D,) and covariance (D, D) of the patches of x. Only x itself is saved for the backward pass.

    x is saved in the dtype in which it came: under autocast this is the half-precision copy that the convolution saves
    too. The backward pass is written out because autograd would save every small intermediate and run twice as many
    operations.
    """

    @staticmethod
    def forward(x: Tensor, center: Tensor, kernel_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return _moments(x, center, kernel_size)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, center, ctx.kernel_size = inputs
        ctx.save_for_backward(x, center, output[0])

    @staticmethod
    def backward(ctx, of_mean: Tensor, of_covariance: Tensor) -> tuple[Tensor, None, None]:
        x, center, mean = ctx.saved_tensors
        gradient = _gradient(x, center, mean, of_mean, of_covariance, ctx.kernel_size)
        return gradient.to(x.dtype), None, None


@with_all_digits("(Tensor x, Tensor center, int[] kernel_size) -> (Tensor, Tensor)")
def _moments(x: Tensor, center: Tensor, kernel_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What `_Moments` computes, in float64."""
    (images, channels, height, width), (high, wide) = x.shape, kernel_size
    count, taps, size = images * height * width, high * wide, channels * high * wide
    grid = _grid_for(x, kernel_size)
    line = lay_out(x, (high - 1, wide - 1), products_dtype(x), together(x), center)
    # R of (3), over the distances marked o above.
    rows = [Distances(down, 1 - wide if down else 0, wide - 1) for down in range(high)]
    by_taps = _pairs(correlation(line, line, rows), grid.pairs)  # (2), its first term
    pixels = line.images.flatten(2).transpose(1, 2)
    for lines in grid.ring:  # (2), its second term
        lines = lines.to(x.device)
        windows = lines.windows(pixels, lines.in_line)
        grams = sum_in_float64(torch.bmm(windows.transpose(1, 2), windows).unflatten(0, (images, 4)), 0)
        lines.subtract_grams(by_taps, grams)

    covariance = by_taps.new_empty(size + taps, size + taps)
    by_channel = covariance[:size, :size].unflatten(1, (channels, taps)).unflatten(0, (channels, taps))
    torch.div(by_taps.permute(2, 0, 3, 1), count, out=by_channel)
    of_ones = covariance[:size, size:]
    by_axis = of_ones.unflatten(1, kernel_size).unflatten(0, (channels, high, wide))
    torch.div(_boxes(line.images, grid, kernel_size), count, out=by_axis)
    covariance[size:, :size] = of_ones.t()
    # The mean of u follows from the boxes of the center tap t', whose positions q + t' are all in the image.
    mean = torch.cat([of_ones[:, taps // 2], grid.mean])
    covariance.addr_(mean, mean, alpha=-1)
    covariance[size:, size:] = grid.covariance
    return mean, covariance


def _boxes(images: Tensor, grid: _Grid, kernel_size: tuple[int, int]) -> Tensor:
    """The sums (5) of images in a line, (C, ty, tx, ty', tx'), in float64; within a row, in the images' dtype."""
    (high, wide), (height, width) = kernel_size, (grid.rows.shape[1], grid.columns.shape[1])
    rows = images.permute(0, 2, 3, 1).flatten(0, 1).narrow(1, 0, width)
    along = torch.bmm(grid.columns.to(images).expand(len(rows), -1, -1), rows).unflatten(0, (len(images), -1))
    both = grid.rows @ sum_in_float64(along[:, :height], 0).flatten(1)
    return both.reshape(high, high, wide, wide, -1).permute(4, 0, 2, 1, 3)


@with_all_digits(
    "(Tensor x, Tensor center, Tensor mean, Tensor of_mean, Tensor of_covariance, int[] kernel_size) -> Tensor"
)
def _gradient(
    x: Tensor, center: Tensor, mean: Tensor, of_mean: Tensor, of_covariance: Tensor, kernel_size: tuple[int, int]
) -> Tensor:
    """The gradient to x from the gradients to its moments, in the dtype of the center; itself differentiable."""
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    (images, channels, height, width), (high, wide) = x.shape, kernel_size
    count, taps = images * height * width, high * wide
    size = channels * taps
    both = (of_covariance + of_covariance.t()).div_(count)
    of_mean_u = torch.addmv(of_mean[:size], both[:size], mean, beta=1 / count, alpha=-1)

    # (6): a convolution with the gradients summed over pairs of taps of one distance, minus the ring, plus the boxes.
    by_taps = center.new_empty(taps, taps, channels, channels)  # (t, t', C, C)
    by_taps.copy_(both[:size, :size].unflatten(1, (channels, taps)).unflatten(0, (channels, taps)).permute(1, 3, 0, 2))
    grid, room = _grid_for(x, kernel_size), _with_room(x, center, kernel_size)
    pairs = _folded_pairs(by_taps, grid.distances.to(x.device), kernel_size).to(memory_format=_layout(x))
    gradient = F.conv2d(room, pairs)
    for lines in grid.ring:
        lines.to(x.device).take_off(gradient, room.flatten(2).transpose(1, 2), by_taps)
    by_axis = both[:size, size:].unflatten(1, kernel_size).unflatten(0, (channels, high, wide)).transpose(2, 3)
    of_boxes = by_axis.clone(memory_format=torch.contiguous_format)  # (C, ty, ty', tx, tx')
    of_boxes[:, :, high // 2, :, wide // 2].add_(of_mean_u.reshape(channels, high, wide))
    of_boxes = of_boxes.flatten(3).flatten(1, 2)
    gradient += rounded_like(grid.rows.t() @ of_boxes @ grid.columns, gradient)
    return gradient.contiguous(memory_format=layout)


def _with_room(x: Tensor, center: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """x minus its center, with zeros around it as far as two taps are apart."""
    (images, channels, height, width), (down, right) = x.shape, (k - 1 for k in kernel_size)
    size = images, channels, height + 2 * down, width + 2 * right
    room = torch.empty(size, dtype=center.dtype, device=x.device, memory_format=_layout(x)).zero_()
    room.narrow(2, down, height).narrow(3, right, width).copy_(x).sub_(center[:, None, None])
    return room


class _Grid(NamedTuple):
    """Everything that depends on sizes only."""

    rows: Tensor
    """(ty * ty', H), float64: the rows of x' that tap ty reads at positions where tap ty' is in the image too."""
    columns: Tensor
    """(tx * tx', W): the same for columns."""
    mean: Tensor
    """(t,), float64: mean of e."""
    covariance: Tensor
    """(t, t'), float64: covariance of e, computed from integers and so without rounding errors in the sums."""
    ring: list[Lines]
    """The positions outside the image whose patches reach into it, by how far they reach."""
    distances: Tensor
    """(t, t'): the index of the distance t' - t, counted row by row over all distances."""
    pairs: Tensor
    """(t, t'): the same, counted over the distances marked o above and then over those that follow by (3)."""


def _grid_for(x: Tensor, kernel_size: tuple[int, int]) -> _Grid:
    # Tensors that a compiler traces with must not be cached: they are useless once it is done.
    tracing = torch.compiler.is_compiling() or type(x) is not Tensor
    (height, width), (high, wide) = x.shape[2:], kernel_size
    return (_grid if tracing else _remembered_grid)(height, width, (high, wide), float64_device(x.device))


def _grid(height: int, width: int, kernel_size: tuple[int, int], device: torch.device) -> _Grid:
    rows, columns = (_ranges(n, k, device) for n, k in zip((height, width), kernel_size))
    both = _by_taps((rows.sum(1)[:, None] * columns.sum(1)), kernel_size)
    seen, count = both.diagonal(), height * width
    covariance = (both * count - torch.outer(seen, seen)) / count**2
    height, width = int(height), int(width)  # a compiler's symbols; the pairs below need integers
    around, distances = ring((height, width), kernel_size, device), _distances(kernel_size, device)
    beyond = distances - distances[0, 0]  # relative to the index of distance 0
    pairs = torch.where(beyond >= 0, beyond, distances[0, 0] - beyond)
    return _Grid(rows, columns, seen / count, covariance, around, distances, pairs)


@lru_cache(maxsize=256)  # 10 to 100 kB each; enough sizes for a training on many sizes
def _remembered_grid(height: int, width: int, kernel_size: tuple[int, int], device: torch.device) -> _Grid:
    with torch.inference_mode(False):  # a later training step may need it for its second derivatives
        return _grid(height, width, kernel_size, device)


class _OutputMoments(torch.autograd.Function):
    """(1): mean W p and variance W Cov W^T, per row of W. Saves only tensors for backward that are kept anyway.

    Everything is in float64, so no digits are lost, not even on a device that runs float32 products in TF32.
    """

    @staticmethod
    def forward(
        weight: Tensor, mean: Tensor, covariance: Tensor, rounded: Tensor, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = _rows(weight, center)
        var = ((rows @ covariance).unsqueeze(1) @ rows.unsqueeze(2)).flatten()
        return rows @ mean, var.clamp_min_(0)  # only rounding makes it negative

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        weight, mean, _, rounded, center = inputs
        ctx.save_for_backward(weight, mean, rounded, center)

    @staticmethod
    def backward(ctx, of_mean: Tensor, of_var: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        weight, mean, rounded, center = ctx.saved_tensors
        rows = _rows(weight, center)
        weighted = rows * of_var[:, None]
        of_rows = torch.addmm(torch.outer(of_mean, mean), weighted, in_float64(rounded), alpha=2)
        of_u, of_e = of_rows.unflatten(1, (len(center) + 1, -1)).split([len(center), 1], 1)
        of_weight = rounded_like(torch.addcmul(of_u, center[:, None], of_e).reshape(weight.shape), weight)
        return of_weight, rows.t() @ of_mean, weighted.t() @ rows, None, None


def _rows(weight: Tensor, center: Tensor) -> Tensor:
    """(W, W c) of (4): the rows that act on (u, e), (out, D), float64."""
    weight = in_float64(weight)
    return torch.cat([weight.flatten(1), center @ weight.flatten(2)], dim=1)


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last on a CPU, where it makes the convolution of the moments a third faster (measured)."""
    last = x.device.type == "cpu" or x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _pairs(correlation: Tensor, pairs: Tensor) -> Tensor:
    """R[t' - t] for each pair of taps, (t, t', C, C), from R over half the distances, (C, distances, C)."""
    half = correlation.transpose(0, 1)
    return torch.cat([half, half[1:].transpose(1, 2)])[pairs.to(half.device)]


def _folded_pairs(by_taps: Tensor, distances: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """The kernel of (6), (C, C, 2 k - 1, 2 k - 1): `by_taps` summed over the pairs of taps of each distance."""
    high, wide = (2 * k - 1 for k in kernel_size)
    summed = by_taps.new_zeros(high * wide, *by_taps.shape[2:])
    summed.index_add_(0, distances.flatten(), by_taps.flatten(0, 1))
    return summed.permute(1, 2, 0).unflatten(2, (high, wide))


def _distances(kernel_size: tuple[int, int], device: torch.device) -> Tensor:
    """`_Grid.distances`. For a 1x2 kernel, whose distances -1, 0, 1 have the indices 0, 1, 2: [[1, 2], [0, 1]]."""
    high, wide = kernel_size
    row, column = torch.arange(high, device=device), torch.arange(wide, device=device)
    dy = (row[None] - row[:, None] + high - 1)[:, None, :, None]
    dx = (column[None] - column[:, None] + wide - 1)[None, :, None, :]
    return (dy * (2 * wide - 1) + dx).flatten(2).flatten(0, 1)


def _by_taps(by_axis: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Rearrange (ty * ty', tx * tx') to (t, t')."""
    high, wide = kernel_size
    return by_axis.reshape(high, high, wide, wide).transpose(1, 2).flatten(2).flatten(0, 1)


def _ranges(length: int, size: int, device: torch.device) -> Tensor:
    """The boxes of (5) along one axis of the image [0, length), as masks (t * t', v); taps count from the middle.

    With 3 taps and 5 pixels, t = 1 and t' = -1: q = v - 1 allows . 1 1 1 1, and q + t' = v - 2 allows . . 1 1 1.
    """
    v = torch.arange(length, device=device)
    taps = torch.arange(size, device=device) - size // 2
    q = v - taps[:, None]  # (t, v)
    other = q[:, None] + taps[:, None]  # (t, t', v)
    seen = (q >= 0) & (q < length)
    return (seen[:, None] & (other >= 0) & (other < length)).flatten(0, 1).double()
