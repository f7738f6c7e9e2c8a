"""How much memory is free on a device, the refusal of what cannot fit, and errors that tell of it.

What a checkpoint will take is `loaders.memory.device`'s to say.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import psutil

from loaders.errors import NotEnoughMemoryError
from loaders.memory.cgroup import read_free_memory

if TYPE_CHECKING:
    import torch


def free_device_bytes(device: torch.device) -> int:
    """Return the bytes free on a device; for the CPU, within the container's limit."""
    if device.type == "cuda":
        import torch  # takes seconds, and a plan for the CPU does without

        return int(torch.cuda.mem_get_info(device)[0])
    return cpu_free_bytes()


def cpu_free_bytes() -> int:
    """Return the bytes of main memory that are free, within the container's limit."""
    available = int(psutil.virtual_memory().available)
    container = read_free_memory()
    return available if container is None else min(available, container)


# What the CPU's allocator refuses, or a file's mapping, has no type of its own in PyTorch.
_REFUSALS = ("DefaultCPUAllocator: can't allocate", "Cannot allocate memory", "out of memory")
# oneDNN's words where it chose how to multiply and has no room to compile it. That nothing fits a
# product is said of its "primitive descriptor".
_NO_PRIMITIVE = "could not create a primitive"


def is_refused_allocation(error: Exception) -> bool:
    """Whether memory was asked for and refused, on the CPU or on a device."""
    import torch  # takes seconds, and a plan for the CPU does without

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    return any(words in str(error) for words in _REFUSALS) or str(error).endswith(_NO_PRIMITIVE)


def check_fits(needed: int, device: torch.device) -> None:
    """Raise NotEnoughMemoryError, with the arithmetic, unless the device has the bytes free."""
    free = free_device_bytes(device)
    if needed > free:
        remedy = "" if device.type == "cpu" else ", let the CPU hold a part of it (--cpu-offload)"
        raise NotEnoughMemoryError(
            f"the weights need {needed / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are free,"
            f" {(needed - free) / 1e9:.2f} GB are missing; choose a smaller variant{remedy}, free"
            " memory, or use another device"
        )
