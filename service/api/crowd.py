"""Lets work that can wait begin once a crowd's refusals are out.

Beside a crowd, those that are refused wait for whatever is done for those that are not: bodies are
parsed, and texts rendered and encoded in threads, which take Python's lock from the event loop for
milliseconds at a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WAIT_S = 0.25  # however long the crowd is


class Crowd:
    """Tells when a turn of the event loop has refused nobody; asked from one event loop."""

    def __init__(self) -> None:
        self._num_refused = 0
        self._end: asyncio.Future[None] | None = None  # None while there is no crowd

    def note_refusal(self) -> None:
        """Know that a request was refused for want of room."""
        self._num_refused += 1
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
            # The next look may come before the next turn's requests: it never ends the crowd.
            self._look_later(self._end, self._num_refused - 1, time.monotonic() + MAX_WAIT_S)

    async def wait(self) -> None:
        """Return once the crowd is over, after MAX_WAIT_S at the latest; at once without one."""
        if self._end is not None:
            await asyncio.shield(self._end)

    def call(self, work: Callable[[], object]) -> None:
        """Do something once the crowd is over, which there must be."""
        if self._end is None:
            raise RuntimeError("there is no crowd whose end would be told")
        self._end.add_done_callback(lambda _: work())

    def _look_later(self, end: asyncio.Future[None], num_refused: int, until: float) -> None:
        end.get_loop().call_soon(self._look, end, num_refused, until)

    def _look(self, end: asyncio.Future[None], num_refused: int, until: float) -> None:
        if self._num_refused != num_refused and time.monotonic() < until:
            self._look_later(end, self._num_refused, until)
            return
        if self._end is end:
            self._end = None
        end.set_result(None)
