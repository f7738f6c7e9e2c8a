"""The server's front as the settings want it: what uvicorn is told, and its connections."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from service.server.connections import Connections
from service.server.http_protocol import HttpProtocol
from service.server.tls_hello import TlsHello

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """How clients reach the application."""

    connections: Connections = field(default_factory=Connections)
    tls: ssl.SSLContext | None = None
    root_path: str = ""  # what a proxy puts before every path
    trusted_proxies: Sequence[str] = ()  # addresses whose X-Forwarded-… are believed

    @property
    def scheme(self) -> str:
        """What the server's address begins with."""
        return "http" if self.tls is None else "https"

    def config(self, app: ASGIApp) -> uvicorn.Config:
        """Return what uvicorn serves the application with."""
        tls = self.tls
        return uvicorn.Config(
            app,
            http=cast("Any", partial(HttpProtocol, connections=self.connections)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(self.trusted_proxies),
            forwarded_allow_ips=list(self.trusted_proxies),
            root_path=self.root_path,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )

    async def accept(self, server: uvicorn.Server, listeners: Sequence[socket.socket]) -> None:
        """Have connections to these sockets answered by a server that was made by `config`.

        In place of uvicorn's own beginning, which gives clients a minute to say hello in TLS, and
        knows nothing of them before that.
        """

        def make_http(beneath: asyncio.Transport | None = None) -> HttpProtocol:
            return HttpProtocol(
                server.config,
                server.server_state,
                app_state={},
                connections=self.connections,
                beneath=beneath,
            )

        protocol: Callable[[], asyncio.Protocol] = make_http
        if self.tls is not None:
            protocol = partial(TlsHello, self.tls, self.connections, make_http)
        loop = asyncio.get_running_loop()
        server.servers = [
            await loop.create_server(protocol, sock=listener, backlog=server.config.backlog)
            for listener in listeners
        ]
        server.started = True
