"""Several ways to do one thing, timed in turns, so that noise meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median

import torch

Times = dict[Hashable, list[float]]


def seconds(run: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Time that a function takes, until the device has done all that it was told."""
    synchronize = torch.get_device_module(torch.device(device).type).synchronize
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def race(
    ways: Mapping[Hashable, Callable[[], object]],
    rounds: int,
    progress: Callable[[], object] = lambda: None,
    device: torch.device | str = "cpu",
) -> Times:
    """Seconds that each way takes in each round, on a device; two rounds to warm up are not counted."""
    times: Times = {way: [] for way in ways}
    for number in range(rounds + 2):
        for way, run in ways.items():
            run()  # not counted: it meets the caches and the memory that the one before it left
            taken = seconds(run, device)
            if number >= 2:
                times[way].append(taken)
        progress()
    return times


def ratio(times: Times, way: Hashable, to: Hashable) -> float:
    """The median over the rounds of the time of one way over that of another."""
    return median(one / other for one, other in zip(times[way], times[to]))
