"""What one connection was given to send, and how much of it the other end has not taken yet.

It waits in up to three places: what is to be encrypted with the loop's TLS, what is encrypted with
the plain transport beneath it, which TLS does not count, and in either case some with the system.
The system sends its part by itself, also once the connection is closed here. But it asks for more
only when a good part has gone, which takes a slow reader seconds in which nothing else moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.server.descriptors import num_unsent_by_system

if TYPE_CHECKING:
    import asyncio


class Unsent:
    """One connection's."""

    def __init__(self, beneath: asyncio.Transport | None = None) -> None:
        """beneath: the plain transport, where the connection speaks TLS."""
        self._transports = () if beneath is None else (beneath,)
        self._seen = 0

    def begin(self, transport: asyncio.Transport) -> None:
        """Know where the connection is written to."""
        self._transports = (transport, *self._transports)

    @property
    def num_here(self) -> int:
        """Count the bytes that would be lost if the connection were dropped now."""
        return sum(transport.get_write_buffer_size() for transport in self._transports)

    @property
    def num_untaken(self) -> int:
        """Count the bytes that the other end has not taken."""
        return self.num_here + sum(num_unsent_by_system(one) for one in self._transports[:1])

    def look(self) -> None:
        """Note how much it is now."""
        self._seen = self.num_untaken

    def has_moved(self) -> bool:
        """Whether the other end has taken some since that was last looked at."""
        return self.num_untaken < self._seen
