"""How long the body of a request may take: a while, and more for what has come of it.

Time that was earned by bytes that came fast is kept up to a bound: else a client could buy hours of
silence with what it sends in a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.server.limits import ConnectionLimits

MOST_AHEAD = 2  # times what a body has at first, from now on


class BodyPace:
    """Of the body that is coming on one connection."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._due = 0.0

    def begin(self, now: float) -> None:
        """Count from now on: it begins, or has waited for us."""
        self._due = now + self._limits.body_timeout_s

    def add(self, num_bytes: int, now: float) -> None:
        """Know that so much has come."""
        latest = now + MOST_AHEAD * self._limits.body_timeout_s
        self._due = min(self._due + num_bytes / self._limits.min_body_rate, latest)

    def left_s(self, now: float) -> float:
        """Return in how many seconds it is too slow; not above 0 where it is."""
        return self._due - now
