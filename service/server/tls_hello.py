"""A connection until both ends speak TLS: counted from the moment it is accepted.

The loop's own TLS servers make a connection known once its handshake is done; until then it would
take a descriptor that no cap sees. What comes afterwards is `service.server.http_protocol`'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.server.connections import Closed, ConnectionPhase, Connections
from service.server.descriptors import has_received_bytes

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from service.server.http_protocol import HttpProtocol
    from service.server.refusals import Refusal


NEVER_S = 24 * 3600  # how soon the loop itself is to drop an answer that is still being read


class TlsHello(asyncio.Protocol):
    """One connection, which has not said hello yet; it gives way to what `make_protocol` makes.

    That is told of the plain transport, where encrypted bytes wait of which TLS's knows nothing.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        connections: Connections,
        make_protocol: Callable[[asyncio.Transport], HttpProtocol],
    ) -> None:
        self._tls = tls
        self._connections = connections
        self._make_protocol = make_protocol
        self._transport: asyncio.Transport | None = None
        self._steps: Coroutine[asyncio.Future[None], None, asyncio.Transport | None]
        self._early: list[bytes] = []  # what came with the handshake's end
        self._why = Closed.TLS
        self._is_lost = False

    # What the loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if not self._connections.add(self):
            self.drop(Closed.NO_ROOM)
            return
        self._connections.mark(self, ConnectionPhase.IDLE)
        self._begin(transport)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._is_lost = True
        self._connections.remove(self, self._why)

    # What `Connections` calls

    def drop(self, reason: Closed) -> None:
        """End at once."""
        self._why = reason
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, _: Refusal) -> None:
        """End: there is nothing yet that an answer could be read with."""
        self.drop(Closed.REFUSED)

    def is_at_rest(self) -> bool:
        """Whether nothing has come: a client that has begun to greet is given time for the rest."""
        return self._transport is None or not has_received_bytes(self._transport)

    # Its own

    def _begin(self, plain: asyncio.Transport) -> None:
        """Begin with TLS, at once: a task would, once the first bytes were read, and lost."""
        steps = asyncio.get_running_loop().start_tls(
            plain,
            self,
            self._tls,
            server_side=True,
            ssl_handshake_timeout=self._connections.limits.header_timeout_s,
            ssl_shutdown_timeout=NEVER_S,  # whoever takes its place has deadlines
        )
        self._steps = steps
        steps.send(None).add_done_callback(lambda _: self._go_on(plain))

    def _go_on(self, plain: asyncio.Transport) -> None:
        """Give way, once the handshake is done; else end."""
        secured: asyncio.Transport | None = None
        try:
            self._steps.send(None)
        except StopIteration as end:
            secured = end.value
        except OSError:  # no TLS, one that is not spoken here, none in time, or a client that left
            pass
        # A client that left during the handshake is told as no error.
        if secured is None or plain.is_closing() or self._is_lost:
            self._connections.remove(self, self._why)
            plain.abort()
            return
        self._connections.hand_over(self)
        protocol = self._make_protocol(plain)
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        self._connections.note_hello(protocol)
        for data in self._early:
            protocol.data_received(data)
