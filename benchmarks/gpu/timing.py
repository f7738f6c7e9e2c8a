"""Times a piece of work on a device: by events on CUDA, by the clock elsewhere."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of several runs."""

    median: float
    fastest: float
    slowest: float


def measure(work: Callable[[], object], device: str, *, repeats: int, warm_ups: int = 3) -> Times:
    """Run the work so many times, one after the other; a warm-up is not counted."""
    for _ in range(warm_ups):
        work()
    time_all = _by_events if device.startswith("cuda") else _by_clock
    times = time_all(work, repeats)
    return Times(*(round(ms, 4) for ms in (statistics.median(times), min(times), max(times))))


def _by_events(work: Callable[[], object], repeats: int) -> list[float]:
    make_event: Any = torch.cuda.Event
    marks = [make_event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]


def _by_clock(work: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return times
