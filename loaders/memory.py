"""How much memory a checkpoint will take on a device, and how much is free there.

A plain estimate from tensor headers, to refuse what cannot fit before a byte of it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from loaders.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loaders.checkpoint import TensorInfo
    from loaders.quantization import Quantization

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
_CGROUP_STAT = Path("/sys/fs/cgroup/memory.stat")


def free_bytes(device: torch.device) -> int:
    """Return the bytes free on a device; for the CPU, within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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


def estimate_bytes(
    tensors: Mapping[str, TensorInfo], quantization: Quantization | None, device: torch.device
) -> int:
    """Estimate what a checkpoint takes once prepared.

    On CPU no code has less than 4 bits, and groups that no integer kernel takes become halves.
    """
    total = sum(tensor.num_bytes for tensor in tensors.values())
    if device.type == "cpu" and quantization is not None:
        bits, group_size = quantization.base.bits, quantization.base.group_size
        prepared_bits = 16 if group_size > 0 and group_size % 32 else max(bits, 4)
        codes = sum(t.num_bytes for name, t in tensors.items() if name.endswith(".qweight"))
        total += codes * (prepared_bits - bits) // bits
    return total


def check_fits(needed: int, device: torch.device) -> None:
    """Raise NotEnoughMemoryError, with both numbers, unless the device has the bytes free."""
    free = free_bytes(device)
    if needed > free:
        raise NotEnoughMemoryError(
            f"the weights need {needed / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are free;"
            " choose a smaller"
            " variant, free memory, or use another device"
        )
