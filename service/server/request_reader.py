"""Reads requests out of a connection's bytes, and refuses those that are wrong or without an end.

llhttp parses and is strict already; here is what it leaves out: caps, versions, `read_head`, and
requests that offer an upgrade, whose body it would skip. Knows nothing of answers and of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import httptools

from service.server.parser_errors import explain
from service.server.refusals import Refusal, malformed, too_large
from service.server.request_head import RequestHead, read_head
from service.server.request_ids import brought_id

if TYPE_CHECKING:
    from service.server.limits import ConnectionLimits

# They say how the request is to be read, or what becomes of its connection, when both are known.
NOT_IN_TRAILERS = frozenset(
    {b"connection", b"content-length", b"host", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
HEADER_SIGNS = len(": \r\n")  # of a header, beside its name and its value


class RequestListener(Protocol):
    """Who is told of what was read: `service.server.http_protocol.HttpProtocol`."""

    def on_head(self, head: RequestHead, *, may_keep_alive: bool) -> None:
        """Take a request whose headers have come."""

    def on_body_part(self, part: bytes) -> None:
        """Take a part of its body."""

    def on_whole(self) -> None:
        """Know that it has come whole."""


class RequestReader:
    """One connection's requests, one after the other."""

    def __init__(
        self, limits: ConnectionLimits, listener: RequestListener, root_path: str = ""
    ) -> None:
        self.num_requests = 0  # that have begun to come
        self.is_in_head = self.is_in_body = False
        self._limits = limits
        self._listener = listener
        self._root_path = root_path
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._num_trailers = 0
        self._size = 0  # of the headers, or of the trailers
        self._num_idle_bytes = 0  # that came since a head, or a part of a body, was complete
        self._is_resuming = False  # the parser is being told what it has read already
        self._framing = b""  # of a request that offers an upgrade and has a body
        self._parser = self._make_parser()

    def feed(self, data: bytes) -> None:
        """Read on. Raises Refusal; then nothing more can be read."""
        self._num_idle_bytes += len(data)
        self._feed(data)
        # Half a header is kept by the parser, which tells of whole ones only.
        is_within = self.is_in_head or self.is_in_body
        if is_within and self._num_idle_bytes > 2 * self._limits.max_header_size:
            raise too_large("the request's headers, or what lies between its chunks, are too long")

    def identify(self, refusal: Refusal) -> None:
        """Refuse by the id that the request brings, if it has come so far and brings one."""
        refusal.request_id = brought_id(self._headers) or refusal.request_id

    def give_up(self) -> None:
        """Let go of a request that has not come whole."""
        self.is_in_head = self.is_in_body = False

    def close(self) -> None:
        """Let go of the parser and the listener, which keep this object."""
        del self._parser, self._listener

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        self.num_requests += 1
        self.is_in_head = True
        self._num_idle_bytes = self._size = self._num_trailers = 0
        self._target, self._headers = b"", []

    def on_url(self, url: bytes) -> None:
        if self._is_resuming:
            return
        self._target += url
        if len(self._target) > self._limits.max_header_size:
            raise Refusal(414, "uri_too_long", "the request's target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_resuming:
            return
        self._size += len(name) + len(value) + HEADER_SIGNS
        if self.is_in_head:
            self._headers.append((name.lower(), value.rstrip(b" \t")))
        elif name.lower() in NOT_IN_TRAILERS:
            raise malformed(f"{name.decode('latin-1')} must not stand behind the body")
        else:
            self._num_trailers += 1  # and no more of them: they come after what they might open
        most = self._limits.max_headers
        if len(self._headers) > most or self._num_trailers > most:
            raise too_large(f"the request has more than {most} headers")
        if self._size > self._limits.max_header_size:
            most = self._limits.max_header_size
            raise too_large(f"the request's headers have more than {most} bytes")

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            return
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        head = read_head(method, self._target, version, self._headers, self._root_path)
        self.is_in_head, self.is_in_body = False, True
        self._num_idle_bytes = self._size = 0
        if parser.should_upgrade() and head.has_body:
            self._framing = head.framing()
        self._listener.on_head(head, may_keep_alive=parser.should_keep_alive())

    def on_body(self, part: bytes) -> None:
        self._num_idle_bytes = 0
        self._listener.on_body_part(part)

    def on_chunk_header(self) -> None:
        self._num_idle_bytes = 0

    def on_chunk_complete(self) -> None:
        self._num_idle_bytes = 0

    def on_message_complete(self) -> None:
        if self._framing:  # the parser takes what offers an upgrade to have no body
            return
        self.is_in_body = False
        self._headers = []  # what comes now is another request's
        self._listener.on_whole()

    # Its own

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # It is not taken, as RFC 9110 allows: what follows is HTTP/1.1 as before.
                (end_of_head,) = offer.args
            except httptools.HttpParserError as error:
                raise explain(error, data, self._parser.get_http_version()) from error
            # Outside of the handler: within it the parser's next error would lose its cause.
            data = data[end_of_head:]
            self._read_on_behind_offer()

    def _read_on_behind_offer(self) -> None:
        """Begin with a parser that knows of the head only whether a body follows it."""
        self._parser = self._make_parser()
        framing, self._framing = self._framing, b""
        self._is_resuming = True
        self._parser.feed_data(framing)
        self._is_resuming = False

    def _make_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # What comes behind a request that asks to close is never answered; that must not be told
        # before the answer, as an error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser
