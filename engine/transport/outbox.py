"""Collects what one turn of the event loop submits and aborts, so that one message carries it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.transport.wire import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.request import SequenceRequest


class Outbox:
    """The next message to an engine; sent at the end of the turn that began it."""

    def __init__(self, send: Callable[[Work], None]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._work = Work(1, [], [])

    @property
    def number(self) -> int:
        """The next message's; they count from 1."""
        return self._work.number

    def submit(self, request: SequenceRequest) -> None:
        self._flush_soon()
        self._work.requests.append(request)

    def abort(self, sequence_id: int) -> None:
        self._flush_soon()
        self._work.aborted.append(sequence_id)

    def _flush_soon(self) -> None:
        if not (self._work.requests or self._work.aborted):
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        work = self._work
        self._work = Work(work.number + 1, [], [])
        self._send(work)
