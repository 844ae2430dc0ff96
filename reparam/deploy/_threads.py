"""How many threads torch uses, for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from ..errors import SpecError

MOST_THREADS = 1024
"""More are of no use, and far more end the process."""
_lock = threading.Lock()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch runs on so many threads in the thread that calls this, and in no other; 0 leaves all as it is."""
    check_threads(count)
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    _set(count)
    try:
        yield
    finally:
        _set(before)


def check_threads(count: int) -> None:
    """Refuses a count that no machine has a use for.

    Raises:
        SpecError: for such a count.
    """
    if not 0 <= count <= MOST_THREADS:
        raise SpecError(f"threads must be 0 (as many as there are) to {MOST_THREADS}, but got threads={count}")


def _set(count: int) -> None:
    """Sets the count of this thread; torch gives it to all new ones too, whose own count a new one therefore sets."""
    with _lock, ThreadPoolExecutor(1) as new:
        usual = new.submit(torch.get_num_threads).result()
        torch.set_num_threads(count)
        new.submit(torch.set_num_threads, usual).result()
