"""Where the borders of two operations in a row keep them from being one convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import NotLinearError
from ._linear import LinearOp


class BorderError(NotLinearError):
    """Two operations that are one but for their borders."""


_COUNT: ContextVar[bool] = ContextVar("count", default=True)


@contextmanager
def borders_ignored() -> Iterator[None]:
    """Inside, operations are composed whatever they pad with: right but for the borders, to see what these prevent."""
    token = _COUNT.set(False)
    try:
        yield
    finally:
        _COUNT.reset(token)


def check_borders(first: LinearOp, second: LinearOp) -> None:
    """Refuse padding that cannot be moved before `first`.

    Along an axis, it can if `first` reads one pixel there and maps padding to padding.

    Raises:
        BorderError: if it cannot.
    """
    if not _COUNT.get():
        return
    zeros = second.padding_mode == "zeros" and any(p > 0 for pair in second.pads for p in pair)
    if first.is_padded and first.padding_mode != second.padding_mode:
        raise BorderError("a padded operation follows one with another padding mode, so the border would differ")
    for axis, after_it in enumerate(second.pads):
        if not any(after_it):
            continue
        before = first.pads[axis] if first.pads else (0, 0)
        if first.ndim and not first.tiles and (first.kernel.size[axis] > 1 or first.stride[axis] > 1):
            raise BorderError("a padded operation follows one with taps or a stride, so the border would differ")
        if any(before) and (min(*before, *after_it) < 0 or second.padding_mode != "zeros"):
            raise BorderError("padding follows cropping, so the border would differ")
    if zeros and first.shifts:
        raise BorderError("zero padding follows a bias, so the border would differ")
