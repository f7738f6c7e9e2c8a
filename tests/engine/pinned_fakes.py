"""Stands for pinned memory and a device that does its work only when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class FakeEvent:
    """An event that the device comes to when somebody waits for it, or `pass_it` is called."""

    def __init__(self, said: list[str]) -> None:
        self._said = said
        self._is_ahead = False  # recorded, and the device has not come to it

    def record(self) -> None:
        self._is_ahead = True
        self._said.append("recorded")

    def query(self) -> bool:
        return not self._is_ahead

    def synchronize(self) -> None:
        self._said.append("waited" if self._is_ahead else "was there")
        self._is_ahead = False

    def pass_it(self) -> None:
        self._is_ahead = False


class FakeMemory:
    """Memory whose buffers and events are known."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.events: list[FakeEvent] = []
        self.said: list[str] = []

    def buffer(self, num_bytes: int) -> Tensor:
        self.buffers.append(torch.empty(num_bytes, dtype=torch.uint8))
        return self.buffers[-1]

    def event(self) -> FakeEvent:
        self.events.append(FakeEvent(self.said))
        return self.events[-1]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a part of the memory."""
        places = [buffer.untyped_storage().data_ptr() for buffer in self.buffers]
        return tensor.untyped_storage().data_ptr() in places
