"""A block's share in a pass that computes the kernels of many blocks."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_
from threading import get_ident

import torch
from torch import Tensor

from ..algebra._kernels import Kernel
from ._alike import Place

_version = attrgetter("_version")


class Share:
    """The kernel of one block, computed with those of others; copies and pickles of the block start without it."""

    def __init__(self) -> None:
        self.wanted = True
        """Whether the block ran as one convolution in its last forward."""
        self.among = 1
        """The number of blocks, this one included, whose kernels one pass computes if all are wanted."""
        self.clear()

    def __reduce__(self) -> tuple[type[Share], tuple[()]]:
        return type(self), ()

    def clear(self) -> None:
        """Drop the kernel."""
        self._kernel: Kernel | None = None
        self._thread: int | None = None
        self._places: Sequence[Place] = ()
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._taken = False

    def give(self, kernel: Kernel, places: Sequence[Place]) -> None:
        """Store a kernel, with the places of the tensors that it was computed from."""
        again = torch._C._current_graph_task_id() != -1  # a checkpoint runs the network again
        self._kernel, self._thread, self._taken = kernel, get_ident(), again
        self._places, self._tensors = places, [table[name] for table, name in places]
        self._versions = [*map(_version, self._tensors)]

    def close(self) -> None:
        """Mark the forward as over: only a checkpoint that runs it again in the backward pass still gets the kernel."""
        self._thread = None

    def take(self) -> Kernel | None:
        """The kernel, if it belongs to the present parameters."""
        if torch.compiler.is_compiling() or self._kernel is None or not torch.is_grad_enabled():
            return None
        now = (table.get(name) for table, name in self._places)
        current = all(map(is_, now, self._tensors)) and [*map(_version, self._tensors)] == self._versions
        # A checkpoint must save the same tensors as in the forward; nothing else runs blocks in a backward pass.
        if torch._C._current_graph_task_id() == -1:
            self._taken = self._thread == get_ident() and current
        return self._kernel if self._taken and current else None
