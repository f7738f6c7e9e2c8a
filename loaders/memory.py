"""How much memory is free on a device, and the refusal of what cannot fit there.

What a checkpoint will take is `loaders.device_memory`'s to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from loaders.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_CGROUP_STAT = Path("/sys/fs/cgroup/memory.stat")


def free_bytes(device: torch.device) -> int:
    """Return the bytes free on a device; for the CPU, within the container's limit."""
    if device.type == "cuda":
        import torch  # takes seconds, and a plan for the CPU does without

        return int(torch.cuda.mem_get_info(device)[0])
    return cpu_free_bytes()


def cpu_free_bytes() -> int:
    """Return the bytes of main memory that are free, within the container's limit."""
    available = int(psutil.virtual_memory().available)
    container = _container_free_bytes()
    return available if container is None else min(available, container)


def _container_free_bytes() -> int | None:
    """Return what the control group leaves, page cache included; None without a limit."""
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
        used = int(_CGROUP_USED.read_text())
        stat = dict(line.split() for line in _CGROUP_STAT.read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    return int(limit) - used + int(stat.get("inactive_file", 0))


def is_refused_allocation(error: Exception) -> bool:
    """Whether an allocation was refused, on the CPU or on a device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # PyTorch has no type of its own for an allocation that the CPU's allocator was refused.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def check_fits(needed: int, device: torch.device) -> None:
    """Raise NotEnoughMemoryError, with the arithmetic, unless the device has the bytes free."""
    free = free_bytes(device)
    if needed > free:
        remedy = "" if device.type == "cpu" else ", let the CPU hold a part of it (--cpu-offload)"
        raise NotEnoughMemoryError(
            f"the weights need {needed / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are free,"
            f" {(needed - free) / 1e9:.2f} GB are missing; choose a smaller variant{remedy}, free"
            " memory, or use another device"
        )
