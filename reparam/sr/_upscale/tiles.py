"""An image in tiles that overlap by exactly what a pixel of the output depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...errors import SpecError


class Span(NamedTuple):
    """A stretch of one axis: what is read, and what of it is kept; in pixels of the small image."""

    read: slice
    keep: slice
    """Where the result belongs in the image."""
    inner: slice
    """Where it lies in what was read."""

    def __repr__(self) -> str:
        return f"{self.read.start}:{self.read.stop} -> {self.keep.start}:{self.keep.stop}"


def spans(length: int, tile: int, radius: int, period: int = 1, margin: int = 0) -> Iterator[Span]:
    """Cuts an axis into nearly equal stretches of at most `tile` pixels; each is read with `radius` more around it.

    What is not read, before or after, is a multiple of `period`, for the sake of which more is read. At the ends of the
    axis nothing is added, so that a network pads there as it does on the whole image; unless there are `margin` more
    pixels at both ends (a multiple of the period), which are read only.

    Example:
        >>> list(spans(10, 6, 2))
        [0:7 -> 0:5, 3:10 -> 5:10]
        >>> list(spans(10, 6, 2, period=2))
        [0:8 -> 0:5, 2:10 -> 5:10]
        >>> list(spans(10, 6, 2, margin=2))
        [0:9 -> 0:5, 5:14 -> 5:10]
    """
    count = -(-length // tile)
    for index in range(count):
        start, stop = index * length // count, (index + 1) * length // count
        first = max(-margin, start - radius) // period * period
        last = length + margin - max(0, length + margin - stop - radius) // period * period
        yield Span(slice(first + margin, last + margin), slice(start, stop), slice(start - first, stop - first))


def fixed_spans(length: int, size: int, radius: int, period: int = 1) -> Iterator[Span]:
    """Cuts an axis for a network that takes `size` pixels, no more and no less, of which `radius` overlap.

    All is read from multiples of `period`; what is read behind the end of the axis (where `length` is less than `size`,
    or the rest is no multiple) is for the caller to make up.

    Raises:
        SpecError: if there are several, and the overlap leaves nothing of one.

    Example:
        >>> list(fixed_spans(10, 6, 1))
        [0:6 -> 0:5, 4:10 -> 5:10]
        >>> list(fixed_spans(4, 6, 1))
        [0:6 -> 0:4]
    """
    last = -(-max(0, length - size) // period) * period
    step = (size - 2 * radius) // period * period
    if last and step < 1:
        raise SpecError(
            f"a network that takes {size} pixels, of which tiles overlap by {radius} on either side, cannot be run on "
            f"{length}; export it for a larger size"
        )
    starts = [*range(0, last, step), last] if last else [0]
    borders = [0, *(start + radius for start in starts[1:]), length]
    for start, begin, end in zip(starts, borders, borders[1:]):
        yield Span(slice(start, start + size), slice(begin, end), slice(begin - start, end - start))


def scaled(part: slice, scale: int) -> slice:
    """The same part of the large image."""
    return slice(scale * part.start, scale * part.stop)
