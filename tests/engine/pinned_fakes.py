"""Stands for pinned memory and a device that does its work only when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class FakeEvent:
    """An event that the device comes to when somebody waits for it, or for a later one."""

    def __init__(self, ahead: list[FakeEvent], said: list[str]) -> None:
        self._ahead = ahead  # those that the device has not come to, in its order
        self._said = said

    def record(self) -> None:
        self._said.append("recorded")
        self._ahead.append(self)

    def query(self) -> bool:
        return self not in self._ahead

    def synchronize(self) -> None:
        self._said.append("was there" if self.query() else "waited")
        self.pass_it()

    def pass_it(self) -> None:
        """Have the device come so far."""
        if self in self._ahead:
            del self._ahead[: self._ahead.index(self) + 1]


class FakeMemory:
    """Memory whose buffers and events are known."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.events: list[FakeEvent] = []
        self.said: list[str] = []
        self._ahead: list[FakeEvent] = []

    def buffer(self, num_bytes: int) -> Tensor:
        self.buffers.append(torch.empty(num_bytes, dtype=torch.uint8))
        return self.buffers[-1]

    def event(self) -> FakeEvent:
        self.events.append(FakeEvent(self._ahead, self.said))
        return self.events[-1]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a part of the memory."""
        places = [buffer.untyped_storage().data_ptr() for buffer in self.buffers]
        return tensor.untyped_storage().data_ptr() in places
