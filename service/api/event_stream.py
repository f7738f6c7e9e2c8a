"""The response that streams an answer: server-sent events, straight to the socket.

It does not end with an error of its own: what fails on the way is told to the client by
`service.api.middleware`, in the stream.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

from service.api.answers import KEEP_ALIVE
from service.api.connection import while_connected
from service.errors import StalledReaderError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from service.api.answers import Frames
    from service.generation import Generation, TextDelta
    from service.lifecycle import Lifecycle

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """How long a stream may be silent, and a reader idle; from the settings."""

    keep_alive_interval_s: float
    stall_limit_s: float


class EventStream(Response):
    """Streams a generation; stops it when the client leaves or no longer reads."""

    media_type = EVENT_STREAM

    def __init__(
        self,
        generation: Generation,
        frames: Frames,
        *,
        lifecycle: Lifecycle,
        timing: StreamTiming,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        # Reverse proxies must pass each event on, not gather them.
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._generation = generation
        self._frames = frames
        self._lifecycle = lifecycle
        self._timing = timing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the whole answer, or raise what kept it from being sent."""
        async with aclosing(self._generation):
            writer = _Writer(send, self._timing)
            await writer.start(self.raw_headers)
            await while_connected(self._write(writer), receive, self._lifecycle)
            await writer.end(self._frames.end(self._generation.usage))

    async def _write(self, writer: _Writer) -> None:
        async def deliver(delta: TextDelta) -> None:
            await writer.write(self._frames.delta(delta))

        async with asyncio.TaskGroup() as group:
            keep_alive = group.create_task(writer.keep_alive())
            for index in range(self._generation.num_choices):
                await writer.write(self._frames.start(index))
            await self._generation.run(deliver)
            keep_alive.cancel()


class _Writer:
    """Writes pieces of a body; gives up on a reader that has stopped reading."""

    def __init__(self, send: Send, timing: StreamTiming) -> None:
        self._send = send
        self._timing = timing
        self._last_write = time.monotonic()

    async def start(self, raw_headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": raw_headers})

    async def write(self, piece: bytes) -> None:
        if piece:
            await self._send_body(piece, more_body=True)

    async def end(self, piece: bytes) -> None:
        await self._send_body(piece, more_body=False)

    async def keep_alive(self) -> None:
        """Write a comment whenever nothing else was written for a while."""
        interval = self._timing.keep_alive_interval_s
        while True:
            silence = time.monotonic() - self._last_write
            if silence >= interval:
                await self.write(KEEP_ALIVE)
                silence = 0
            await asyncio.sleep(interval - silence)

    async def _send_body(self, piece: bytes, *, more_body: bool) -> None:
        try:
            async with asyncio.timeout(self._timing.stall_limit_s):
                await self._send(
                    {"type": "http.response.body", "body": piece, "more_body": more_body}
                )
        except TimeoutError:
            raise StalledReaderError("the client has stopped reading its stream") from None
        self._last_write = time.monotonic()
