"""The ring around an image: the positions outside of it whose patches reach into it.

A position d outside of the image reaches `few` = k // 2 + 1 - d rows into it, with its last `few` rows of taps if it is
above and its first ones if it is below. So the positions of one d are a line, and four lines of the same `few` go
together. Of a 5x5 kernel, by `few`; the corners belong to the lines above and below, as each position must count once:

    1 1 1 1 1 1 1 1 1     lines 0 and 1 are those above and below, which no tap of the kernel meets both,
    2 2 2 2 2 2 2 2 2     lines 2 and 3 those before and after
    1 2 x x x x x 2 1
    1 2 x x x x x 2 1
    2 2 2 2 2 2 2 2 2
    1 1 1 1 1 1 1 1 1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]
"""A row and a column."""


class Lines(NamedTuple):
    """Four lines of positions whose patches meet equally few rows or columns of the image."""

    pixel: tuple[Tensor, Tensor]
    """Row and column of what each tap reads, (line, position, tap) each."""
    inside: Tensor
    """Whether the tap reads anything, (line, position, tap, 1)."""
    taps: Tensor
    """Their numbers in the kernel, (line, tap)."""
    border: tuple[Tensor, Tensor]
    """Row and column of the pixels that are read, (pixel) each."""
    readers: Tensor
    """Who reads each of them, (pixel, reader), as numbers in (line, position, tap); the last one reads nothing."""

    def to(self, device: torch.device) -> Lines:
        pixel, border = ((row.to(device), column.to(device)) for row, column in (self.pixel, self.border))
        return Lines(pixel, self.inside.to(device), self.taps.to(device), border, self.readers.to(device))

    def windows(self, x: Tensor) -> Tensor:
        """The patches of x (N, C, H, W), without what is zero anyway: (N, line, position, tap, C)."""
        return x.permute(0, 2, 3, 1)[:, self.pixel[0], self.pixel[1]] * self.inside

    def subtract_grams(self, by_taps: Tensor, grams: Tensor) -> None:
        """Takes the products of windows, (line, tap * C, tap * C), off those of all taps (t, t', C, C), in float64."""
        most, (all_taps, channels) = self.taps.shape[1], by_taps.shape[1:3]
        pairs = (self.taps[:, :, None] * all_taps + self.taps[:, None]).to(grams.device)
        blocks = grams.unflatten(2, (most, channels)).unflatten(1, (most, channels)).transpose(2, 3)
        for two in (slice(2), slice(2, 4)):  # in which no pair is met twice, so that their order is of no account
            by_taps.flatten(0, 1).index_add_(0, pairs[two].flatten(), blocks[two].flatten(0, 2), alpha=-1)

    def take_off(self, gradient: Tensor, windows: Tensor, by_taps: Tensor) -> None:
        """Takes the gradient that reaches x (N, C, H, W) by way of the windows off it, for one to all pairs of taps."""
        blocks = by_taps[self.taps[:, :, None], self.taps[:, None]].transpose(2, 3).flatten(3).flatten(1, 2)
        of_windows = torch.matmul(windows.flatten(3), blocks).reshape(windows.shape) * self.inside
        read = of_windows.flatten(1, 3)[:, self.readers].sum(2)
        gradient.permute(0, 2, 3, 1)[:, self.border[0], self.border[1]] -= read


def ring(size: Pair, kernel_size: Pair, device: torch.device) -> list[Lines]:
    """The ring around images of a size."""
    return [_lines(few, size, kernel_size, device) for few in range(max(kernel_size) // 2, 0, -1)]


def _lines(few: int, size: Pair, kernel_size: Pair, device: torch.device) -> Lines:
    upright = _two_lines(few, size, kernel_size, beyond=kernel_size[1] // 2)
    turned = _two_lines(few, size[::-1], kernel_size[::-1], beyond=0)
    lines = upright + [([p[::-1] for p in positions], [t[::-1] for t in taps]) for positions, taps in turned]
    # At the end of each line is one position more, where nothing is read.
    longest, most = max(len(positions) for positions, _ in lines) + 1, max(len(taps) for _, taps in lines)
    pixels, inside, readers = [(0, 0)] * (4 * longest * most), [False] * (4 * longest * most), defaultdict(list)
    for number, (positions, taps) in enumerate(lines):
        for (at, q), (tap, t) in product(enumerate(positions), enumerate(taps)):
            pixel = q[0] + t[0] - kernel_size[0] // 2, q[1] + t[1] - kernel_size[1] // 2
            if 0 <= pixel[0] < size[0] and 0 <= pixel[1] < size[1]:
                reader = (number * longest + at) * most + tap
                pixels[reader], inside[reader] = pixel, True
                readers[pixel].append(reader)
    nobody, shape = len(pixels) - 1, (4, longest, most)
    of_taps = [[down * kernel_size[1] + right for down, right in taps] for _, taps in lines]
    by_pixel = _filled(readers.values(), nobody)
    rows, columns, *border = (torch.tensor(ns, device=device) for ns in (*zip(*pixels), *zip(*readers)))
    return Lines(
        (rows.reshape(shape), columns.reshape(shape)),
        torch.tensor(inside, device=device).reshape(*shape, 1),
        torch.tensor(_filled(of_taps, 0), device=device),
        (border[0], border[1]),
        torch.tensor(by_pixel, device=device),
    )


def _two_lines(few: int, size: Pair, kernel_size: Pair, beyond: int) -> list[tuple[list[Pair], list[Pair]]]:
    """Positions and taps of the lines above and below; no positions if the kernel does not reach so far."""
    (height, width), (high, wide) = size, kernel_size
    away = high // 2 + 1 - few
    columns = range(-beyond, width + beyond) if away > 0 else ()
    return [
        (list(product([row], columns)), list(product(taps, range(wide))))
        for row, taps in ((-away, range(high - few, high)), (height - 1 + away, range(few)))
    ]


def _filled(lists: Collection[Sequence[int]], fill: int) -> list[list[int]]:
    """All of them as long as the longest."""
    longest = max(map(len, lists))
    return [[*one, *[fill] * (longest - len(one))] for one in lists]
