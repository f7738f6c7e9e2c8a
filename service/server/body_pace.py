"""How long the body of a request may take: a while, and more for what has come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.server.limits import ConnectionLimits


class BodyPace:
    """Of the body that is coming on one connection."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._began, self._size = 0.0, 0

    def begin(self, now: float) -> None:
        """Count from now on: it begins, or has waited for us."""
        self._began, self._size = now, 0

    def add(self, num_bytes: int) -> None:
        """Know that so much has come."""
        self._size += num_bytes

    def left_s(self, now: float) -> float:
        """Return in how many seconds it is too slow; not above 0 where it is."""
        earned_s = self._size / self._limits.min_body_rate
        return self._began + self._limits.body_timeout_s + earned_s - now
