"""Counts launches: the operations sent to a device in one step. On small images, their number decides the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_NO_WORK = ("detach", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view")
"""Operations that run nothing on a device, although their outputs are not views."""


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NO_WORK:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], object]) -> Counter[str]:
    """Count what a function launches, by the name of the operation: everything except views and empty memory.

    It works on any device, and the count is the same wherever the same code runs. Each operation counts as one launch,
    although some, such as the backward pass of a convolution, launch several kernels on a GPU.

    Args:
        run: a function without arguments.

    Example:
        >>> import torch
        >>> launches(lambda: torch.ones(3).reshape(3, 1) * 2)
        Counter({'ones': 1, 'mul': 1})
    """
    with _Launches() as mode:
        run()
    return mode.names
