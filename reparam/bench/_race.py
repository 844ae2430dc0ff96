"""Several ways to do one thing, timed in turns, so that noise meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median

Times = dict[Hashable, list[float]]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(
    ways: Mapping[Hashable, Callable[[], object]],
    rounds: int,
    progress: Callable[[], object] = lambda: None,
    seconds: Callable[[Callable[[], object]], float] = _seconds,
) -> Times:
    """Seconds that each way takes in each round, by a clock; two rounds to warm up are not counted."""
    times: Times = {way: [] for way in ways}
    for number in range(rounds + 2):
        for way, run in ways.items():
            run()  # not counted: it meets the caches and the memory that the one before it left
            taken = seconds(run)
            if number >= 2:
                times[way].append(taken)
        progress()
    return times


def ratio(times: Times, way: Hashable, to: Hashable) -> float:
    """The median over the rounds of the time of one way over that of another."""
    return median(one / other for one, other in zip(times[way], times[to]))
