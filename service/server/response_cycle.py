"""One request and its answer on their way through uvicorn, with HTTP/1.0 as it should be.

uvicorn's own sends chunks to clients of HTTP/1.0, which know none, and closes under a client that
is still sending, which then may lose its answer. How a connection ends is the protocol's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.server.refusals import REFUSED
from service.server.request_ids import identify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvicorn._types import ASGISendEvent, HTTPResponseStartEvent

    from service.server.refusals import Refusal

NOT_READ = "tetrad.not_read"  # in a request's scope: its answer was dropped, as nobody read it
_WITHOUT_BODY = (204, 304)


class ResponseCycle(RequestResponseCycle):
    """Sends an answer. What its end means for the connection, `on_response` is left to say."""

    is_until_close = False  # whether the end of the connection is the end of the body
    _sends_chunks = False
    _head = b""  # not sent yet: it goes out with a body that stands behind it at once

    def take_body(self, part: bytes) -> None:
        """Have a part of the request's body read, and no more of it for now where it is much."""
        self.body += part
        if len(self.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.message_event.set()

    def end_body(self) -> None:
        """Know that the request has come whole."""
        if not self.response_complete:
            self.more_body = False
            self.message_event.set()

    async def send(self, message: ASGISendEvent) -> None:
        """Send the next part of the answer; nothing to a client that has left."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_started and message["type"] == "http.response.body":
            body, has_more = message.get("body", b""), message.get("more_body", False)
            if has_more and body and self._sends_chunks:  # a token of a stream, most often
                self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
            else:
                self._send_body(body, has_more=has_more)
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self._prepare(message)
            await self._send_start(message)
        else:
            await super().send(message)
        self._sends_chunks = bool(self.chunked_encoding) and self.scope["method"] != "HEAD"

    async def _send_start(self, start: HTTPResponseStartEvent) -> None:
        """Send the head of the answer; one with a length waits for its body, in one packet.

        Each write is a call into the system, which wakes the other end: some 20 µs.
        """
        transport, held = self.transport, _Held()
        self.transport = cast("Any", held)
        try:
            await super().send(start)
        finally:
            self.transport = transport
        if self.expected_content_length and self.scope["method"] != "HEAD":
            self._head = held.data
        else:
            transport.write(held.data)

    def _prepare(self, start: HTTPResponseStartEvent) -> None:
        """Decide how long the connection lasts, and how the body's end is told."""
        if self.waiting_for_100_continue:
            # Whether its body comes now is for the client to say, and it may do either.
            self.keep_alive = False
        if self.scope["http_version"] != "1.0":
            return
        headers = list(start.get("headers", []))
        has_length = any(name.lower() == b"content-length" for name, _ in headers)
        has_body = self.scope["method"] != "HEAD" and start["status"] not in _WITHOUT_BODY
        if has_body and not has_length:
            self.is_until_close = True
            self.keep_alive = self.chunked_encoding = False
        if self.keep_alive:
            start["headers"] = [*headers, (b"connection", b"keep-alive")]

    def _send_body(self, body: bytes, *, has_more: bool) -> None:
        if self.response_complete:
            raise RuntimeError("a body was sent after its end")
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self._sends_chunks:
            end = b"" if has_more else b"0\r\n\r\n"
            piece = b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
            if piece:
                self.transport.write(piece)
        else:
            self._send_plain(body)
        if has_more:
            return
        if self.expected_content_length:
            raise RuntimeError("the body is shorter than its Content-Length")
        self.response_complete = True
        self._sends_chunks = False
        self.message_event.set()
        self.on_response()

    def _send_plain(self, body: bytes) -> None:
        if not self.is_until_close:
            if len(body) > self.expected_content_length:
                raise RuntimeError("the body is longer than its Content-Length")
            self.expected_content_length -= len(body)
        if self._head:
            head, self._head = self._head, b""
            self.transport.writelines((head, body))
        else:
            self.transport.write(body)

    def send_whole(self, messages: Sequence[ASGISendEvent]) -> None:
        """Send a whole answer now; writing must not be paused."""
        for message in messages:
            sending = self.send(message)
            try:
                sending.send(None)
            except StopIteration:
                continue
            raise RuntimeError("an answer that was to be sent at once waits")

    def leave(self, refusal: Refusal | None = None, *, is_stalled: bool = False) -> None:
        """Tell the application that nobody is there any more.

        refusal: what was, or will be, answered in its place; left in the scope for the log.
        is_stalled: whether the client was there, but did not read; likewise.
        """
        if is_stalled:
            cast("dict[str, Any]", self.scope)[NOT_READ] = True
        if refusal is not None:
            scope: dict[str, Any] = cast("dict[str, Any]", self.scope)
            # The application may not have begun with it, and will take the same one.
            refusal.request_id = identify(scope, refusal.request_id)
            refusal.is_behind_answer = self.response_started
            scope[REFUSED] = refusal
        self.disconnected = True
        self.waiting_for_100_continue = False  # nothing more is sent, that neither
        self.message_event.set()


class _Held:
    """Takes what would be written."""

    data = b""

    def write(self, data: bytes) -> None:
        self.data += data
