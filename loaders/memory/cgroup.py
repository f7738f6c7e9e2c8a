"""What the control group that this process runs in allows it: memory and processors' time.

Reads the files of cgroup v2, as a container sees them. Where they are missing, or say nothing that
is understood, there is no limit. What the machine itself has is asked elsewhere.
"""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def read_memory_limit() -> int | None:
    """Return the limit in bytes; None without one."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(limit) if limit.isdigit() else None


def read_free_memory() -> int | None:
    """Return the bytes that are left, page cache included; None without a limit."""
    limit = read_memory_limit()
    if limit is None:
        return None
    try:
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        return limit - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def read_cpu_limit() -> float | None:
    """Return how many processors' time may be used; None without a limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
