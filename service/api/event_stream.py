"""The response that streams an answer: server-sent events, straight to the socket.

It does not end with an error of its own: what fails on the way is told to the client by
`service.api.middleware`, in the stream.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

from service.api.connection import while_connected
from service.api.frames import MAX_REPORTED_AT_ONCE
from service.api.scope import EVENT_STREAM, keep_error_frames, record_of, straight_send
from service.errors import StalledReaderError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

    from starlette.types import Receive, Scope, Send

    from service.api.frames import Frames
    from service.server.lifecycle import Lifecycle
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import Generation

STALLED = "the client has stopped reading its stream"
LOOKS_PER_LIMIT = 4  # how often a write that hangs is looked for within the time it may hang


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer, or raise what kept it from being sent."""
        keep_error_frames(scope, self._frames.error)
        async with aclosing(self._generation):
            writer = _Writer(send, straight_send(scope), self._timing, self._frames.keep_alive)
            try:
                await writer.start(self.raw_headers)
                await while_connected(self._write(writer), receive, self._lifecycle)
                await writer.end(self._frames.end())
            finally:
                record_of(scope).send_wait_s += writer.send_wait_s

    async def _write(self, writer: _Writer) -> None:
        def deliver(delta: TextDelta) -> Awaitable[None]:
            return writer.write(self._frames.delta(delta))

        async def deliver_any(delta: TextDelta) -> None:
            if len(delta.tokens) > MAX_REPORTED_AT_ONCE:
                await writer.write(await asyncio.to_thread(self._frames.delta, delta))
            else:
                await deliver(delta)

        async with asyncio.TaskGroup() as group:
            watch = group.create_task(writer.watch())
            for index in range(self._generation.num_choices):
                await writer.write(self._frames.start(index))
            # Which of the two is asked here, as to ask costs something a token.
            await self._generation.run(deliver_any if self._generation.reports_prompts else deliver)
            watch.cancel()


class _Writer:
    """Writes pieces of a body; gives up on a reader that has stopped reading.

    One task watches over all its writes: a time limit on each of them cost 10 µs a token, a quarter
    of what one may cost.
    """

    def __init__(
        self, send: Send, send_straight: Send, timing: StreamTiming, keep_alive: bytes
    ) -> None:
        self._keep_alive = keep_alive
        self._send = send
        self._send_straight = send_straight
        self._timing = timing
        self._last_write = time.monotonic()
        self._num_writing = 0  # writes under way; more than one where there are several choices
        self.send_wait_s = 0.0  # for pieces of the stream, altogether
        self._waiting_since = 0.0  # while there are any: since when none has come to its end

    async def start(self, raw_headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": raw_headers})

    async def write(self, piece: bytes) -> None:
        if not piece:
            return
        if not self._num_writing:
            self._waiting_since = time.monotonic()
        self._num_writing += 1
        try:
            await self._send_straight(
                {"type": "http.response.body", "body": piece, "more_body": True}
            )
        finally:
            self._num_writing -= 1
        now = time.monotonic()
        self.send_wait_s += now - self._waiting_since
        self._last_write = self._waiting_since = now

    async def end(self, piece: bytes) -> None:
        async with self._limited():
            await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def watch(self) -> None:
        """Write a comment after a while of silence; raise StalledReaderError if a write hangs."""
        limit_s, interval_s = self._timing.stall_limit_s, self._timing.keep_alive_interval_s
        while True:
            pause_s = limit_s / LOOKS_PER_LIMIT
            if self._num_writing:
                if time.monotonic() - self._waiting_since >= limit_s:
                    raise StalledReaderError(STALLED)
            else:
                if time.monotonic() - self._last_write >= interval_s:
                    async with self._limited():
                        await self.write(self._keep_alive)
                pause_s = min(pause_s, self._last_write + interval_s - time.monotonic())
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timing.stall_limit_s):
                yield
        except TimeoutError:
            raise StalledReaderError(STALLED) from None
