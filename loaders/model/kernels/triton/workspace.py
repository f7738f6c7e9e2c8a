"""Buffers on a device that all layers share: sums of split products, locks, dequantised weights.

Sized while layers are prepared, so that a step allocates none of them and a CUDA graph may hold
their addresses. Products on a device run one after another, so one of each is enough.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch

from loaders.quantization.plane_layout import USUAL_MULTIPROCESSORS

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

_BYTE = torch.uint8


class Workspace:
    """What the kernels of one device share; it goes with the last kernel that holds it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.partials = torch.empty(0, dtype=torch.float32, device=device)
        # Zero between launches: the last program at a tile puts it back.
        self.locks = torch.zeros(0, dtype=torch.int32, device=device)
        self._weight = torch.empty(0, dtype=_BYTE, device=device)

    def reserve(self, *, num_partials: int, num_locks: int, weight_bytes: int) -> None:
        """Make room; not after a graph was captured, which keeps the old addresses."""
        if self.partials.numel() < num_partials:
            self.partials = self.partials.new_empty(num_partials)
        if self.locks.numel() < num_locks:
            self.locks = self.locks.new_zeros(num_locks)
        if self._weight.numel() < weight_bytes:
            self._weight = self._weight.new_empty(0)  # let go first: there is no room for both
            self._weight = self._weight.new_empty(weight_bytes)

    def weight(self, num_inputs: int, num_outputs: int, dtype: torch.dtype) -> Tensor:
        """Return a place for a dequantised piece, [inputs, outputs], of whatever it held."""
        num_bytes = num_inputs * num_outputs * dtype.itemsize
        return self._weight[:num_bytes].view(dtype).view(num_inputs, num_outputs)

    @property
    def num_bytes(self) -> int:
        """All that it holds."""
        return sum(held.nbytes for held in (self.partials, self.locks, self._weight))


_workspaces: WeakValueDictionary[torch.device, Workspace] = WeakValueDictionary()


def workspace_of(device: torch.device) -> Workspace:
    """Return the one of a device."""
    found = _workspaces.get(device)
    if found is None:
        found = _workspaces[device] = Workspace(device)
    return found


def num_multiprocessors(device: torch.device) -> int:
    """Count a GPU's multiprocessors; a usual number where there is no GPU."""
    if device.type != "cuda":
        return USUAL_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Have kernels launched there: Triton takes the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
