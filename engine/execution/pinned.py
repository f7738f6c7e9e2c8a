"""Memory of the host that the device copies from and to by itself, and events that say when it did.

Pinned memory takes far longer to make than to fill, so it is made once: in sections that are used
in turn, each given out piece by piece. Who writes or reads a section must know that the device is
done with it; that is what its event is for. What goes to the device is `host_ring`'s, what comes
from it `step_results`'.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import structlog
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

log = structlog.get_logger(__name__)

_ALIGNMENT = 64  # bytes: any number type may begin at it, and a line of the processor's caches


class Event(Protocol):
    """A place in the order of the device's work."""

    def record(self) -> None:
        """Stand behind all that was queued so far."""

    def query(self) -> bool:
        """Tell whether the device has come past it, or it was never recorded."""

    def synchronize(self) -> None:
        """Wait until the device has come past it."""


class HostMemory(Protocol):
    """What sections are made of."""

    def buffer(self, num_bytes: int) -> Tensor:
        """Make memory that copies need not wait for: [num_bytes] uint8."""

    def event(self) -> Event:
        """Make an event, not recorded yet."""


class PinnedMemory:
    """Memory that a GPU copies from and to beside its other work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def buffer(self, num_bytes: int) -> Tensor:
        """Make pinned memory; takes about a millisecond for each few MiB."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def event(self) -> Event:
        """Make one that does not note the time, which would cost more."""
        event: Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return event


class NoEvent:
    """The event of a device that has always done what it was told to."""

    def record(self) -> None:
        """Do nothing."""

    def query(self) -> bool:
        """Say that all is done."""
        return True

    def synchronize(self) -> None:
        """Wait for nothing."""


class PlainMemory:
    """Stands for pinned memory where the device's own is the host's, or holds nothing at all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def buffer(self, num_bytes: int) -> Tensor:
        """Make memory of the device: on the meta device, none."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def event(self) -> Event:
        """Make an event that is never waited for."""
        return NoEvent()


def memory_beside(device: torch.device) -> HostMemory:
    """Choose the memory through which a device is told things."""
    return PinnedMemory(device) if device.type == "cuda" else PlainMemory(device)


class Section:
    """One step's piece of the host's memory."""

    def __init__(self, memory: HostMemory, num_bytes: int) -> None:
        self._memory = memory
        self._buffer = memory.buffer(num_bytes)
        self._used = 0
        # Outgrown in this step; its copies are under way.
        self._outgrown: list[Tensor] = []
        self.event = memory.event()
        self.num_growths = 0
        self.num_uses = 0

    @property
    def num_bytes(self) -> int:
        """How much it holds."""
        return self._buffer.numel()

    def begin(self) -> bool:
        """Give it out from its start again, once the device is done with it.

        Returns whether that had to be waited for.
        """
        must_wait = not self.event.query()
        if must_wait:
            self.event.synchronize()
        self._used = 0
        self.num_uses += 1
        self._outgrown.clear()
        return must_wait

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Give out the next piece; it grows where it must, which is slow."""
        num_bytes = math.prod(shape) * dtype.itemsize
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if start + num_bytes > self.num_bytes:
            self._grow(num_bytes)
            start = 0
        self._used = start + num_bytes
        return self._buffer[start : self._used].view(dtype).view(*shape)

    def end(self) -> None:
        """Note that the device's work with it has been queued."""
        self.event.record()

    def _grow(self, num_bytes: int) -> None:
        """Go on in memory that holds twice as much, or what is asked for."""
        self.num_growths += 1
        self._outgrown.append(self._buffer)
        self._buffer = self._memory.buffer(max(2 * self.num_bytes, num_bytes))


class Sections:
    """Sections that steps use in turn."""

    def __init__(self, memory: HostMemory, num_bytes: int, *, count: int, name: str) -> None:
        """name: whose they are, for the log."""
        self._sections = [Section(memory, num_bytes) for _ in range(count)]
        self._name = name
        self._next = 0
        self._has_told = False  # that they grow
        self.num_waits = 0

    @property
    def num_growths(self) -> int:
        """How often any of them was too small."""
        return sum(section.num_growths for section in self._sections)

    def next(self) -> Section:
        """Begin the one that was used longest ago."""
        section = self._sections[self._next]
        self._next = (self._next + 1) % len(self._sections)
        self.num_waits += section.begin()
        if self.num_growths and not self._has_told:
            self._has_told = True
            log.info("host_memory_grew", of=self._name, num_bytes=self._largest())
        return section

    def _largest(self) -> int:
        return max(section.num_bytes for section in self._sections)
