"""The ring around an image: the positions outside the image whose patches reach into it.

A position at distance d from the image reaches `few` = k // 2 + 1 - d rows into it: with the last `few` rows of taps if
it is above, with the first ones if it is below. The positions at one distance form a line, and the four lines of the
same `few` are handled together. For a 5x5 kernel, by `few`; the corners belong to the lines above and below, because
each position must count once:

    1 1 1 1 1 1 1 1 1     lines 0 and 1 are above and below; no tap belongs to both
    2 2 2 2 2 2 2 2 2     lines 2 and 3 are left and right
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
    """Four lines of positions whose patches reach the same number of rows or columns of the image."""

    in_line: Tensor
    """The pixel that each tap reads, (line * position * tap), as an index into an image laid out in a line."""
    in_room: Tensor
    """The same as an index into an image with zeros around it, as far as two taps are apart."""
    taps: Tensor
    """The index of each tap in the kernel, (line, tap)."""
    pairs: Tensor
    """The index of each pair of taps, t * taps + t', (line, tap, tap)."""
    border: Tensor
    """The pixels that are read, as indices into the image, (pixel)."""
    readers: Tensor
    """The readers of each pixel, (pixel, reader), as indices into (line, position, tap); the last reads nothing."""

    def to(self, device: torch.device) -> Lines:
        return Lines(*(tensor.to(device) for tensor in self))

    def windows(self, pixels: Tensor, read: Tensor) -> Tensor:
        """The patches of images (N, pixel, C) without their zero parts: (N * line, position, tap * C)."""
        lines, taps = self.taps.shape
        # Which of the two is faster, by several times, depends on whether the channels of a pixel are adjacent.
        found = pixels.index_select(1, read) if pixels.stride(2) == 1 else pixels[:, read]
        return found.reshape(len(pixels) * lines, -1, taps * pixels.shape[2])

    def subtract_grams(self, by_taps: Tensor, grams: Tensor) -> None:
        """Subtract the windows' products (line, tap * C, tap * C) from those of all taps (t, t', C, C), in float64."""
        most, channels, pairs = self.taps.shape[1], by_taps.shape[2], self.pairs.to(grams.device)
        blocks = grams.unflatten(2, (most, channels)).unflatten(1, (most, channels)).transpose(2, 3).contiguous()
        for two in (slice(2), slice(2, 4)):  # no pair occurs twice in either half, so the order does not matter
            by_taps.flatten(0, 1).index_add_(0, pairs[two].flatten(), blocks[two].flatten(0, 2), alpha=-1)

    def take_off(self, gradient: Tensor, room: Tensor, by_taps: Tensor) -> None:
        """Subtract the windows' part from the gradient to x (N, C, H, W); `by_taps` is that to the pairs of taps."""
        lines = len(self.taps)
        blocks = by_taps.flatten(0, 1)[self.pairs].transpose(2, 3).flatten(3).flatten(1, 2)
        windows = self.windows(room, self.in_room).unflatten(0, (-1, lines))
        of_windows = torch.matmul(windows, blocks).reshape(len(room), -1, room.shape[2])
        read = of_windows.index_select(1, self.readers.flatten()).unflatten(1, self.readers.shape).sum(2)
        gradient.flatten(2).index_add_(2, self.border, read.transpose(1, 2), alpha=-1)


def ring(size: Pair, kernel_size: Pair, device: torch.device) -> list[Lines]:
    """The ring around images of `size`."""
    return [_lines(few, size, kernel_size, device) for few in range(max(kernel_size) // 2, 0, -1)]


def _lines(few: int, size: Pair, kernel_size: Pair, device: torch.device) -> Lines:
    upright = _two_lines(few, size, kernel_size, beyond=kernel_size[1] // 2)
    turned = _two_lines(few, size[::-1], kernel_size[::-1], beyond=0)
    lines = upright + [([p[::-1] for p in positions], [t[::-1] for t in taps]) for positions, taps in turned]
    # Each line ends with one extra position that reads nothing.
    longest, most = max(len(positions) for positions, _ in lines) + 1, max(len(taps) for _, taps in lines)
    pixels: list[Pair | None] = [None] * (4 * longest * most)
    readers = defaultdict(list)
    for number, (positions, taps) in enumerate(lines):
        for (at, q), (tap, t) in product(enumerate(positions), enumerate(taps)):
            pixel = q[0] + t[0] - kernel_size[0] // 2, q[1] + t[1] - kernel_size[1] // 2
            if 0 <= pixel[0] < size[0] and 0 <= pixel[1] < size[1]:
                reader = (number * longest + at) * most + tap
                pixels[reader] = pixel
                readers[pixel].append(reader)
    of_taps = torch.tensor(_filled([[t[0] * kernel_size[1] + t[1] for t in taps] for _, taps in lines], 0))
    all_taps, nobody = kernel_size[0] * kernel_size[1], len(pixels) - 1
    (down, right), width = (k - 1 for k in kernel_size), size[1]
    # To read nothing is to read a zero: in the line, after the first row or below the last one; in the room, a corner.
    zero = width if right else size[0] * width
    return Lines(
        torch.tensor([zero if at is None else at[0] * (width + right) + at[1] for at in pixels]),
        torch.tensor([0 if at is None else (at[0] + down) * (width + 2 * right) + at[1] + right for at in pixels]),
        of_taps,
        of_taps[:, :, None] * all_taps + of_taps[:, None],
        torch.tensor([row * width + column for row, column in readers]),
        torch.tensor(_filled(readers.values(), nobody)),
    ).to(device)


def _two_lines(few: int, size: Pair, kernel_size: Pair, beyond: int) -> list[tuple[list[Pair], list[Pair]]]:
    """Positions and taps of the lines above and below; without positions if the kernel does not reach that far."""
    (height, width), (high, wide) = size, kernel_size
    away = high // 2 + 1 - few
    columns = range(-beyond, width + beyond) if away > 0 else ()
    return [
        (list(product([row], columns)), list(product(taps, range(wide))))
        for row, taps in ((-away, range(high - few, high)), (height - 1 + away, range(few)))
    ]


def _filled(lists: Collection[Sequence[int]], fill: int) -> list[list[int]]:
    """Pad all lists to the length of the longest."""
    longest = max(map(len, lists))
    return [[*one, *[fill] * (longest - len(one))] for one in lists]
