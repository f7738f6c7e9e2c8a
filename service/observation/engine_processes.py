"""The metrics of engines' processes: what the system says of each, when somebody scrapes.

Reads the system's files, so it is called beside the event loop. An engine in a thread of the
server's process has none of its own; `tetrad_process_…` tells of that one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import psutil

from service.observation.families import counter, gauge
from service.observation.observed import by_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from service.observation.observed import ObservedVariants

LABELS = ("model_name",)


class _Reading(NamedTuple):
    resident_bytes: int
    cpu_s: float
    started: float  # seconds since 1970


def engine_pids(variants: ObservedVariants) -> dict[str, list[int]]:
    """Return the engines' processes by name; of two during a swap first the one that answers."""
    found: dict[str, list[int]] = {}
    for name, group in by_name(variants).items():
        pids = [variant.status.pid for variant in group]
        found[name] = [pid for pid in pids if pid is not None and pid != os.getpid()]
    return found


def engine_process_families(pids: Mapping[str, Sequence[int]]) -> Iterator[Metric]:
    """Make the families; a process that has ended meanwhile is left out."""
    read = {name: [each for pid in group if (each := _read(pid))] for name, group in pids.items()}
    running = {name: readings for name, readings in read.items() if readings}
    yield gauge(
        "tetrad_engine_resident_bytes",
        "Memory of the engine's process; of two during a swap, of both.",
        LABELS,
        [((name,), sum(each.resident_bytes for each in found)) for name, found in running.items()],
    )
    yield counter(
        "tetrad_engine_cpu_seconds",
        "Processor time of the engine's process; begins anew with each.",
        LABELS,
        [((name,), found[0].cpu_s) for name, found in running.items()],
    )
    yield gauge(
        "tetrad_engine_start_time_seconds",
        "When the engine's process began, in seconds since 1970.",
        LABELS,
        [((name,), found[0].started) for name, found in running.items()],
    )


def _read(pid: int) -> _Reading | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return _Reading(
                process.memory_info().rss, times.user + times.system, process.create_time()
            )
    except psutil.Error:
        return None
