"""Sizes of kernels inside a larger one."""

from __future__ import annotations

Size = tuple[int, ...]


def lines_of(size: Size) -> list[Size]:
    """One line of taps along each axis: for 3x3 these are 3x1 and 1x3."""
    return [tuple(k if axis == along else 1 for axis, k in enumerate(size)) for along in range(len(size))]


def less(size: Size, taps: int) -> Size:
    """A size that is smaller by `taps` per axis, but at least one."""
    return tuple(max(k - taps, 1) for k in size)
