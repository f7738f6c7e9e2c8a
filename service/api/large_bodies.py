"""Bounds the bytes of large bodies that are held at once: read, parsed, or waiting for a model.

Before a request has its place in the queue nothing else bounds how many there are but connections,
and each may hold a body of several megabytes. Bytes count as they come: one that only says how
much it will send takes nothing from others. Small bodies do not count; `service.api.request_bodies`
knows which are.
"""

from __future__ import annotations

from engine.errors import QueueFullError

NUM_LARGEST = 16  # of the largest bodies that are allowed, may be held at once
MAX_BYTES = NUM_LARGEST * 4 * 1024 * 1024
RETRY_AFTER_S = 2.0  # sixteen bodies of 4 MB are parsed in about as long


class LargeBodies:
    """How many bytes of large bodies are held, and how many may be; used from one event loop."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    @classmethod
    def for_size(cls, max_body_bytes: int) -> LargeBodies:
        """Return the bound where no body may be larger than this."""
        return cls(NUM_LARGEST * max_body_bytes)

    def require_room(self, num_bytes: int) -> None:
        """Raise QueueFullError where so many more bytes may not be held."""
        if self.num_bytes + num_bytes > self.max_bytes:
            raise QueueFullError(
                f"{self.num_bytes} bytes of large request bodies are being read, and at most"
                f" {self.max_bytes} may; send this one again later",
                retry_after_s=RETRY_AFTER_S,
            )


class BodyShare:
    """What one request's body takes of them; released as often as one likes."""

    def __init__(self, bodies: LargeBodies) -> None:
        self._bodies = bodies
        self._num_bytes = 0

    def require_room(self, num_bytes: int) -> None:
        """Raise QueueFullError where a body of so many bytes may not be held now."""
        self._bodies.require_room(num_bytes - self._num_bytes)

    def grow_to(self, num_bytes: int) -> None:
        """Take what a body has become longer by. Raises QueueFullError, and keeps what it has."""
        more = num_bytes - self._num_bytes
        self._bodies.require_room(more)
        self._bodies.num_bytes += more
        self._num_bytes = num_bytes

    def release(self) -> None:
        """Let go of all of it."""
        self._bodies.num_bytes -= self._num_bytes
        self._num_bytes = 0
