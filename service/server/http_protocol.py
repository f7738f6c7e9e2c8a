"""HTTP/1.1 and 1.0 on one connection: uvicorn's protocol, held to deadlines, caps and the letter.

uvicorn runs the application. Left alone it keeps a connection that never finishes its request for
ever, takes headers without bound, and does not tell a request that its client left while another
one waits behind it. Requests are read in `request_reader`, how an answer is sent stands in
`response_cycle`, how many connections there may be in `connections`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.server.at_once import AnswersAtOnce
from service.server.body_pace import BodyPace
from service.server.connections import Closed, ConnectionPhase, Connections
from service.server.deadlines import Deadline
from service.server.descriptors import has_unread_bytes
from service.server.pipeline import Pipeline
from service.server.refusals import Refusal, draining, headers_too_slow, too_slow
from service.server.request_reader import RequestReader
from service.server.response_cycle import ResponseCycle
from service.server.unsent import Unsent

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from service.server.limits import ConnectionLimits
    from service.server.request_head import RequestHead

LINGER_S = 2  # for the other end to read what it was refused with; to close at once may lose it
LAST_LINGER_S = 0.5  # the same, once the server ends: it waits for nothing else then


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
        beneath: asyncio.Transport | None = None,  # TLS
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._limits = connections.limits
        self._deadline = Deadline(self.loop, self._on_deadline)
        self._reader = RequestReader(self._limits, self, config.root_path)
        self._phase: ConnectionPhase | None = None
        self._phase_of = 0  # the request, by number, that the phase began with
        self._is_behind = False  # another one, which is being answered
        self._why: Closed | None = None  # it ends
        self._refusal: Refusal | None = None  # to be sent once what came before is answered
        self._latest: ResponseCycle | None = None  # of the request that came last
        self._answering: ResponseCycle | None = None
        self._waiting = Pipeline()  # for the answer of one before them
        self._at_once = AnswersAtOnce(self.app)
        self._body = BodyPace(self._limits)
        self.unsent = Unsent(beneath)

    # What the loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.unsent.begin(transport)
        if self._connections.add(self):
            self._settle()
        else:
            self.drop(Closed.NO_ROOM)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.close()
        self._connections.remove(self, self._why or Closed.CLIENT)
        for cycle in (self._answering, *self._waiting):
            if cycle is not None:
                cycle.leave(is_stalled=self._why is Closed.STALLED)
        self._waiting.clear()
        self._reader.close()
        self._latest = self._answering = self._refusal = None  # there may be no collector for it
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self._phase is ConnectionPhase.CLOSING:
            return
        try:
            with self._at_once:
                self._reader.feed(data)
            if self._reader.is_in_body and self._connections.is_draining:
                raise draining()
        except Refusal as refusal:
            self.refuse(refusal)
        else:
            self._settle()

    def pause_writing(self) -> None:
        """Know that the other end does not take what it is sent; it has a while to do so."""
        super().pause_writing()
        self._connections.mark_stalled(self, is_stalled=True)
        if self._phase is ConnectionPhase.ANSWERING:
            self._watch_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._connections.mark_stalled(self, is_stalled=False)
        if self._phase is ConnectionPhase.ANSWERING:
            self._deadline.clear()

    def shutdown(self) -> None:
        """End once what is being answered is; uvicorn asks for it as it ends."""
        self._waiting.clear()
        if self._phase is ConnectionPhase.CLOSING:
            if not self.unsent.num_here:
                self._deadline.set(LAST_LINGER_S)
        elif self._answering is None:
            self._close(self._why or Closed.SHUTDOWN)
        else:
            self._answering.keep_alive = False

    # What `Connections` calls

    def drop(self, reason: Closed) -> None:
        """End at once."""
        self._why, self._phase = reason, ConnectionPhase.CLOSING
        self.transport.abort()

    def is_at_rest(self) -> bool:
        """Whether nothing has come that was not read, nor waits to be sent."""
        return not (self.unsent.num_here or has_unread_bytes(self.transport))

    def refuse(self, refusal: Refusal) -> None:
        """Answer so once what came before has its answer, and end."""
        if self._refusal is not None or self._phase is ConnectionPhase.CLOSING:
            return
        cycle = self._latest if self._reader.is_in_body else None
        if cycle is not None and cycle.response_complete:  # and so not refused
            self._linger(Closed.ANSWERED)
            return
        self._reader.identify(refusal)
        if cycle is not None:
            cycle.leave(refusal)
        self._connections.note_refusal(refusal, self.client[0] if self.client else None)
        self._reader.give_up()
        self._refusal = refusal
        if cycle is not None:
            if cycle.response_started:  # nothing may follow an answer, nor stand within one
                self._linger(Closed.REFUSED)
                return
            if cycle is self._answering:
                self._answering = None
            else:
                self._waiting.drop_last()
        if self._answering is None:
            self._send_refusal(refusal)
        else:
            self._settle()

    # What the reader calls

    def on_head(self, head: RequestHead, *, may_keep_alive: bool) -> None:
        self._body.begin(self.loop.time())
        self._latest = _make_cycle(self, head, may_keep_alive=may_keep_alive)
        if self._answering is None:
            self._answer(self._latest)
            return
        try:
            self._waiting.add(self._latest, head)
        except Refusal:
            self._reader.give_up()  # it does not wait, so there is none to take back
            raise

    def on_body_part(self, part: bytes) -> None:
        self._body.add(len(part), self.loop.time())
        cycle = self._latest
        if cycle is None or cycle.response_complete:
            return
        if cycle is self._answering:
            cycle.take_body(part)
        else:
            self._waiting.add_body(cycle, part)

    def on_whole(self) -> None:
        if self._latest is not None:
            self._latest.end_body()

    # What an answer calls

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        cycle, self._answering = self._answering, None
        if self.transport.is_closing() or cycle is None:
            return
        if not cycle.keep_alive:
            is_sending = self._reader.is_in_body or self._reader.is_in_head
            (self._linger if is_sending else self._close)(Closed.ANSWERED)
            return
        self.flow.resume_reading()
        if self._waiting:
            self._answer(self._waiting.take())
        elif self._refusal is not None:
            self._send_refusal(self._refusal)
            return
        self._settle()

    # Its own

    def _answer(self, cycle: ResponseCycle) -> None:
        self._answering = cycle
        if self.flow.write_paused or not self._at_once.answer(cycle):
            self._start_asgi_task(cycle, self.app)

    def _settle(self) -> None:
        """Take up what the connection is doing now, and the deadline that goes with it."""
        phase = _find_phase(self._reader, self._answering)
        is_behind = self._answering not in (None, self._latest)
        is_as_before = phase is self._phase and self._reader.num_requests == self._phase_of
        is_closing = self._phase is ConnectionPhase.CLOSING
        if is_closing or (is_as_before and is_behind is self._is_behind):
            return
        self._phase, self._phase_of, self._is_behind = phase, self._reader.num_requests, is_behind
        self._connections.mark(self, phase, is_answering=is_behind)
        if is_as_before:
            return  # and in time
        if phase is ConnectionPhase.IDLE:
            self._latest = None  # nothing is kept of what was asked
        if phase is not ConnectionPhase.ANSWERING:
            self._deadline.set(_limit_of(phase, self._limits, self._phase_of))
        elif self.flow.write_paused:
            self._watch_unsent()
        else:
            self._deadline.clear()

    def _on_deadline(self) -> None:
        if self._phase is ConnectionPhase.IDLE:
            self._close(Closed.IDLE if self._reader.num_requests else Closed.FIRST_BYTE)
        elif self._phase is ConnectionPhase.HEAD:
            self.refuse(headers_too_slow(self._limits.header_timeout_s))
        elif self._phase is ConnectionPhase.BODY:
            self._look_at_body()
        elif self.unsent.has_moved():
            self._watch_unsent()  # a slow reader, but one that reads
        else:
            self.drop(self._why or Closed.STALLED)

    def _watch_unsent(self) -> None:
        """Give the other end a while to take some of what waits to be sent, or to read the end."""
        self.unsent.look()
        self._deadline.set(self._limits.stall_limit_s if self.unsent.num_here else LINGER_S)

    def _look_at_body(self) -> None:
        """Give a body more time for what has come of it, or give it up."""
        cycle, now = self._latest, self.loop.time()
        if self.flow.read_paused or (cycle is not None and cycle.waiting_for_100_continue):
            self._body.begin(now)  # it waits for us
        if (left_s := self._body.left_s(now)) > 0:
            self._deadline.set(left_s)
        else:
            self.refuse(too_slow("the request's body did not come in time"))

    def _send_refusal(self, refusal: Refusal) -> None:
        if not self.transport.is_closing():
            self.transport.write(refusal.response(self.server_state.default_headers))
            self._linger(Closed.REFUSED)

    def _linger(self, reason: Closed) -> None:
        """End, but let the other end read first: closing under what it still sends is a reset."""
        self._why, self._phase = reason, ConnectionPhase.CLOSING
        self._connections.mark(self, ConnectionPhase.CLOSING)
        self._watch_unsent()  # of an answer before it, too
        self.flow.resume_reading()
        transport = self.transport
        (transport.write_eof if transport.can_write_eof() else transport.close)()

    def _close(self, reason: Closed) -> None:
        """End as soon as what was written has gone out."""
        self._why, self._phase = reason, ConnectionPhase.CLOSING
        self._connections.mark(self, ConnectionPhase.CLOSING)
        self._deadline.clear()
        if self.unsent.num_here or self.scheme == "https":
            self._watch_unsent()  # TLS says good-bye, and waits for the other to do so
        self.transport.close()


def _find_phase(reader: RequestReader, answering: ResponseCycle | None) -> ConnectionPhase:
    if reader.is_in_body:
        return ConnectionPhase.BODY
    if answering is not None:
        return ConnectionPhase.ANSWERING
    return ConnectionPhase.HEAD if reader.is_in_head else ConnectionPhase.IDLE


def _limit_of(phase: ConnectionPhase, limits: ConnectionLimits, num_requests: int) -> float:
    """Return how long a phase may last that waits for the client's bytes."""
    if phase is ConnectionPhase.BODY:
        return limits.body_timeout_s
    if phase is ConnectionPhase.HEAD:
        return limits.header_timeout_s
    return limits.idle_timeout_s if num_requests else limits.first_byte_timeout_s


def _make_cycle(
    connection: HttpProtocol, head: RequestHead, *, may_keep_alive: bool
) -> ResponseCycle:
    return ResponseCycle(
        scope=_make_scope(connection, head),
        transport=connection.transport,
        flow=connection.flow,
        logger=connection.logger,
        access_logger=connection.access_logger,
        access_log=False,
        default_headers=connection.server_state.default_headers,
        message_event=asyncio.Event(),
        expect_100_continue=head.expects_continue and head.has_body,
        keep_alive=may_keep_alive,
        on_response=connection.on_response_complete,
    )


def _make_scope(connection: HttpToolsProtocol, head: RequestHead) -> HTTPScope:
    """Return what the application is told of a request."""
    return {
        "type": "http",
        "asgi": {"version": connection.asgi_version, "spec_version": "2.3"},
        "http_version": head.version,
        "method": head.method,
        "server": connection.server,
        "client": connection.client,
        "scheme": connection.scheme or "http",
        "root_path": "",  # taken off the path, which so has one form
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query,
        "headers": head.headers,
        "state": connection.app_state.copy(),
    }
