"""What the routes are given to work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.api.event_stream import StreamTiming
    from service.api.requests import RequestLimits
    from service.lifecycle import Lifecycle


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The collaborators of the routes, and their bounds."""

    lifecycle: Lifecycle
    limits: RequestLimits
    timing: StreamTiming
    max_body_bytes: int
