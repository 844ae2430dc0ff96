"""What a block gets of a pass that computes the kernels of many."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident

import torch
from torch import Tensor

from ..algebra._kernels import Kernel
from ._alike import Place


class Share:
    """The kernel of one block that was computed with those of others; no part of copies and pickles of the block."""

    def __init__(self) -> None:
        self.wanted = True
        """Whether the block ran as one convolution when it ran last."""
        self.among = 1
        """Blocks of the network, this one included, whose kernels one pass computes if all of them are wanted."""
        self.clear()

    def __reduce__(self) -> tuple[type[Share], tuple[()]]:
        return type(self), ()

    def clear(self) -> None:
        """Forgets the kernel."""
        self._kernel: Kernel | None = None
        self._thread: int | None = None
        self._source: list[tuple[Place, Tensor, int]] = []
        self._taken = False

    def give(self, kernel: Kernel, places: Sequence[Place]) -> None:
        """Puts in a kernel, and where that stands which it was read from."""
        self._kernel, self._thread, self._taken = kernel, get_ident(), False
        self._source = [((table, name), table[name], table[name]._version) for table, name in places]

    def close(self) -> None:
        """Says that the forward is over: only a checkpoint that runs it again in the backward pass gets the kernel."""
        self._thread = None

    def take(self) -> Kernel | None:
        """The kernel, if it is that of the parameters as they are now."""
        if self._kernel is None or not torch.is_grad_enabled():
            return None
        current = all(
            table.get(name) is tensor and tensor._version == version for (table, name), tensor, version in self._source
        )
        # A checkpoint must save again what was saved in the forward; nothing else runs blocks in a backward pass.
        if torch._C._current_graph_task_id() == -1:
            self._taken = self._thread == get_ident() and current
        return self._kernel if self._taken and current else None
