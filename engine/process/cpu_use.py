"""Reads what computing threads got of the CPUs, and what everybody else took, from Linux's /proc.

Says nothing of what follows from it: `thread_count` decides how many threads compute. Elsewhere
than on Linux, or where /proc does not count what is needed, there is nothing to read.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
NANOSECONDS = 1e-9
# The columns of a CPU's line that count as taken, by their place behind its name. Of "nice" (1) see
# `_taken_s`; "idle" and "iowait" (3, 4) are free; guests (8, 9) are in "user" already. "steal" (7)
# is what a neighbour of this whole virtual machine took.
_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 0, 1, 2, 5, 6, 7


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Seconds of processors' time between two readings."""

    computed_s: float  # what the computing threads got, all together
    waited_s: float  # for how long they could have run, and had no CPU
    others_s: float  # what anybody else got, on the CPUs that this process may use
    num_cpus: int  # that it may use


@dataclass(frozen=True, slots=True)
class _Counted:
    """What /proc says at one moment, since the machine was started."""

    cpus: set[int]  # that this process may use; the others' counts are of these
    by_thread: dict[int, tuple[int, int]]  # nanoseconds that each ran and waited, by its id
    taken_s: float


class CpuUseReader:
    """Knows what was counted when it was last asked.

    Computing threads are those of this process that are not Python's, and the one that asks:
    OpenMP's workers. What Python's other threads take is company like anybody's.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._counted = self._count()
        self.is_possible = self._counted is not None

    def read(self) -> CpuUse | None:
        """Return what was used since the last reading; None where nothing can be said of that.

        So it is where it is not counted now, was not then, or was of other CPUs.
        """
        before, now = self._counted, self._count()
        self._counted = now
        if before is None or now is None or before.cpus != now.cpus:
            return None
        none = (0, 0)  # of a thread that has just begun
        ran = waited = 0
        for tid, (ran_ns, waited_ns) in now.by_thread.items():
            ran_before, waited_before = before.by_thread.get(tid, none)
            ran += ran_ns - ran_before
            waited += waited_ns - waited_before
        others_s = max(0.0, now.taken_s - before.taken_s - ran * NANOSECONDS)
        return CpuUse(ran * NANOSECONDS, waited * NANOSECONDS, others_s, len(now.cpus))

    def _count(self) -> _Counted | None:
        try:
            cpus = os.sched_getaffinity(0)
            by_thread = self._read_threads()
            taken_s = self._read_taken_s(cpus)
        except (AttributeError, OSError, ValueError, IndexError):
            return None
        if by_thread is None or taken_s is None:
            return None
        return _Counted(cpus, by_thread, taken_s)

    def _read_threads(self) -> dict[int, tuple[int, int]] | None:
        """Return each computing thread's nanoseconds on a CPU and waiting for one, by its id."""
        me = threading.get_native_id()
        pythons = {thread.native_id for thread in threading.enumerate()} - {me}
        counted: dict[int, tuple[int, int]] = {}
        for entry in os.listdir(self._proc / "self" / "task"):
            if (tid := int(entry)) in pythons:
                continue
            try:
                with open(f"{self._proc}/self/task/{entry}/schedstat", "rb") as file:
                    ran, waited, _ = file.read().split()
            except (FileNotFoundError, ProcessLookupError):
                if tid == me:
                    return None
                continue  # it has just ended
            counted[tid] = int(ran), int(waited)
        return counted

    def _read_taken_s(self, cpus: set[int]) -> float | None:
        """Return the seconds that anybody ran on some CPUs since the machine was started."""
        columns = [_USER, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL]
        # What runs at a lower priority hardly takes anything away, unless we are such ourselves.
        if os.getpriority(os.PRIO_PROCESS, 0) > 0:
            columns.append(_NICE)
        names = {b"cpu%d" % cpu for cpu in cpus}
        ticks, num_found = 0, 0
        with open(self._proc / "stat", "rb") as file:
            for line in file:
                name, *counts = line.split()
                if name in names:
                    num_found += 1
                    ticks += sum(int(counts[column]) for column in columns)
                elif not name.startswith(b"cpu"):
                    break  # what follows is long on large machines
        return ticks / os.sysconf("SC_CLK_TCK") if num_found == len(names) else None
