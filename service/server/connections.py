"""Every open connection, what it is doing, and how many ended for which reason.

Keeps their number below the cap: above it the one that has been idle longest is closed, where none
is the one that has not read its answer for longest, and where all are being answered the new one.
Those that have greeted by TLS and not asked yet are a queue of their own, as they take two steps.
Idle is who has no request that came whole: half a request keeps no place, but also takes none from
an answer before it. What a connection does with its bytes is `service.server.http_protocol`'s.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

import structlog

from service.server import refusals
from service.server.limits import ConnectionLimits
from service.server.refusals import WINDOW_S, Refusal, RefusalLog

if TYPE_CHECKING:
    from collections.abc import Collection

log = structlog.get_logger(__name__)


class ConnectionPhase(enum.Enum):
    """What a connection is doing."""

    IDLE = "idle"  # no byte of a request has come, or of the next one
    HEAD = "head"  # a request's first bytes have
    BODY = "body"  # its headers are there, its body is not
    ANSWERING = "answering"
    CLOSING = "closing"


class Closed(enum.StrEnum):
    """Why a connection ended."""

    CLIENT = "client"  # the other end closed it, or broke down
    ANSWERED = "answered"  # the request, or its version of HTTP, asked for no other one
    REFUSED = "refused"  # by an error of HTTP; `Connections.refused` says which
    FIRST_BYTE = "first_byte"  # nothing came
    IDLE = "idle"  # no other request came
    TLS = "tls"  # no handshake came, or it failed
    STALLED = "stalled"  # it did not take what it was sent
    CAP = "cap"  # to make room for others
    NO_ROOM = "no_room"  # a new one, while all others were being answered
    SHUTDOWN = "shutdown"


class Connection(Protocol):
    """What is counted: `service.server.http_protocol.HttpProtocol`."""

    def drop(self, reason: Closed) -> None:
        """End at once."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer so, and end."""

    def is_at_rest(self) -> bool:
        """Whether nothing has come that nobody has read yet, nor is on its way to the other end."""


MAX_LOOKED_AT = 16  # connections that are not at rest, before the oldest has to go all the same
_INCOMPLETE = (ConnectionPhase.HEAD, ConnectionPhase.BODY)


class Connections:
    """The open connections of one server. Touched from the event loop only."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        self.refused: Counter[str] = Counter()  # requests, by the code of the error
        self.closed: Counter[Closed] = Counter()
        self.is_draining = False
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # since longest first: dictionaries keep order
        self._greeted: dict[Connection, None] = {}  # likewise: by TLS, and no request began yet
        self._stalled: dict[Connection, None] = {}  # likewise; some of them are idle as well
        self._incomplete: set[Connection] = set()
        self._log = RefusalLog()
        self._said_full_at: float | None = None

    @property
    def num_open(self) -> int:
        """Count the open connections."""
        return len(self._open)

    @property
    def num_incomplete(self) -> int:
        """Count those whose request has not come whole."""
        return len(self._incomplete)

    def add(self, connection: Connection) -> bool:
        """Count a new connection; return whether there is room for it."""
        has_room = len(self._open) < self.limits.max_connections or self._make_room()
        if not has_room:
            self._say_full()
        self._open.add(connection)  # until it has gone, also where it has to go at once
        return has_room

    def mark(
        self, connection: Connection, phase: ConnectionPhase, *, is_answering: bool = False
    ) -> None:
        """Note what a connection is doing now.

        is_answering: whether an answer is sent while another request comes behind it.
        """
        is_idle = not is_answering and phase is not ConnectionPhase.ANSWERING
        if not is_idle or phase is ConnectionPhase.IDLE:  # which begins with an answer's end
            self._idle.pop(connection, None)
        self._greeted.pop(connection, None)
        if is_idle:
            self._idle.setdefault(connection)  # in its place: bytes that drip in make none younger
        if phase in _INCOMPLETE:
            self._incomplete.add(connection)
        else:
            self._incomplete.discard(connection)

    def mark_stalled(self, connection: Connection, *, is_stalled: bool) -> None:
        """Note whether the other end leaves unread what it is sent."""
        if is_stalled:
            self._stalled.setdefault(connection)
        else:
            self._stalled.pop(connection, None)

    def note_hello(self, connection: Connection) -> None:
        """Note that one of which no request has come yet has done its part of a handshake."""
        if connection in self._idle:
            del self._idle[connection]
            self._greeted[connection] = None

    def drop_all_but(self, kept: Collection[object]) -> None:
        """End those at once that are not among these, as the server ends."""
        for connection in [one for one in self._open if one not in kept]:
            connection.drop(Closed.SHUTDOWN)

    def hand_over(self, connection: Connection) -> None:
        """Forget one that goes on as another, which is then added in its place."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def remove(self, connection: Connection, reason: Closed) -> None:
        """Forget a connection that has ended."""
        if connection in self._open:
            self._open.discard(connection)
            self.closed[reason] += 1
        self._idle.pop(connection, None)
        self._greeted.pop(connection, None)
        self._stalled.pop(connection, None)
        self._incomplete.discard(connection)

    def note_refusal(self, refusal: Refusal, address: str | None) -> None:
        """Count a refused request, and log it unless there were many of late."""
        self.refused[refusal.code] += 1
        self._log.say(refusal, address)

    def close_incomplete(self) -> int:
        """Close those whose request has not come whole; return how many they were.

        From now on a body must come with its headers, so that none can hold a drain.
        """
        self.is_draining = True
        found = list(self._incomplete)
        for connection in found:
            connection.refuse(refusals.draining())
        return len(found)

    def _say_full(self) -> None:
        """Log that a new connection is closed, once in a while: each client that is cannot know."""
        now = time.monotonic()
        if self._said_full_at is not None and now - self._said_full_at < WINDOW_S:
            return
        self._said_full_at = now
        log.warning(
            "connections_full",
            open=len(self._open),
            max_connections=self.limits.max_connections,
            outcome="new connections are closed",
            hint="all are being answered; raise max_connections, and the descriptors (ulimit -n)",
        )

    def _make_room(self) -> bool:
        """Close the one that has been idle longest, or stalled; return whether there is one.

        Of those that have greeted by TLS and not asked yet, and of the other idle ones, the more
        numerous lose one: so no flood that never greets closes a client between its two steps.
        Hundreds may come between two looks at what the others have sent, so one whose request waits
        to be read is passed over, and one whose answer is still on its way.
        """
        crowd = max(self._idle, self._greeted, key=len)
        oldest = list(itertools.islice(crowd, MAX_LOOKED_AT))
        if not oldest and not self._stalled:
            return False
        if oldest:
            spared = next((one for one in oldest if one.is_at_rest()), oldest[0])
        else:
            spared = next(iter(self._stalled))
        # Its descriptor is free before the next is taken, as the loop closes before it accepts.
        self.remove(spared, Closed.CAP)
        spared.drop(Closed.CAP)
        return True
