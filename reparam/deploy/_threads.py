"""Sets for a while how many threads torch uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from ..errors import SpecError

MOST_THREADS = 1024
"""More threads do not help, and far more of them end the process."""
_lock = threading.Lock()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads in the calling thread, and in no other; 0 changes nothing."""
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
    """Refuse a negative or far too large number of threads.

    Raises:
        SpecError: for such a number.
    """
    if not 0 <= count <= MOST_THREADS:
        raise SpecError(f"threads must be from 0 (all available) to {MOST_THREADS}, but got threads={count}")


def _set(count: int) -> None:
    """Set the count of this thread. torch applies it to all new threads too, so a new thread resets it for those."""
    with _lock, ThreadPoolExecutor(1) as new:
        usual = new.submit(torch.get_num_threads).result()
        torch.set_num_threads(count)
        new.submit(torch.set_num_threads, usual).result()
