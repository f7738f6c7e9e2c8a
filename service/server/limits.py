"""What a connection may take before its request is answered: time, bytes, headers; and how many.

Values alone; who keeps to them is `service.server.http_protocol` and `service.server.connections`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Deadlines and caps of connections; from the settings."""

    first_byte_timeout_s: float = 30  # from the connection to the first byte of a request
    header_timeout_s: float = 10  # from that byte to the end of the headers
    body_timeout_s: float = 30  # from there to the end of the body; more for what has come of it
    min_body_rate: int = 16 * 1024  # bytes a second; each that comes adds its time, up to a bound
    idle_timeout_s: float = 30  # from an answer to the next request's first byte
    stall_limit_s: float = 30  # for the other end to take some of what waits to be sent
    max_headers: int = 100  # in a request, and in the trailers of a body
    max_header_size: int = 64 * 1024  # bytes of all of them; also of the target, and of trailers
    max_connections: int = 4096
