"""What the arguments of every network must be."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import SpecError


def check_sizes(*, scale: int, scales: Sequence[int] = (1, 2, 3, 4), **sizes: int) -> None:
    """Refuses a scale that is not among `scales`, and sizes that are no positive integers (`num_blocks` may be 0)."""
    if not isinstance(scale, int) or scale not in scales:
        raise SpecError(f"scale must be one of {', '.join(map(str, scales))}, but got scale={scale!r}")
    for name, size in sizes.items():
        least = 0 if name == "num_blocks" else 1
        if not isinstance(size, int) or size < least:
            raise SpecError(f"{name} must be an integer from {least} on, but got {name}={size!r}")
