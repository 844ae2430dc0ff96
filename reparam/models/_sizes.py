"""The checks of the arguments that all networks share."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import SpecError


def check_sizes(*, scale: int, scales: Sequence[int] = (1, 2, 3, 4), **sizes: int) -> None:
    """Refuse a scale that is not in `scales`, and sizes that are not positive integers (`num_blocks` may be 0)."""
    if not isinstance(scale, int) or scale not in scales:
        raise SpecError(f"scale must be one of {', '.join(map(str, scales))}, but got scale={scale!r}")
    for name, size in sizes.items():
        least = 0 if name == "num_blocks" else 1
        if not isinstance(size, int) or size < least:
            raise SpecError(f"{name} must be an integer of at least {least}, but got {name}={size!r}")
