"""All that is observed of one server, put together: the API notes, scrapes and the log read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.observation.engine_lives import EngineLives
from service.observation.loop_lag import LoopLag
from service.observation.request_counts import RequestCounts
from service.observation.request_story import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.observation.observed import ConnectionCounts
    from service.observation.request_log import RequestLog
    from service.observation.request_record import RequestRecord


@dataclass(slots=True)
class Observation:
    """What was counted since the process began."""

    log: RequestLog | None = None  # None writes no line a request
    connections: ConnectionCounts | None = None
    num_lines_dropped: Callable[[], int] = lambda: 0
    counts: RequestCounts = field(default_factory=RequestCounts)
    lives: EngineLives = field(default_factory=EngineLives)
    lag: LoopLag = field(default_factory=LoopLag)

    def note_end(self, record: RequestRecord, *, is_logged: bool) -> None:
        """Count a request that ends now, or ended a moment ago, and write its line."""
        story = tell(record, time.monotonic() if record.ended is None else record.ended)
        self.counts.note(record, story)
        if is_logged and self.log is not None:
            self.log.write(record, story)
        record.generation = None  # whoever still holds the request need not hold its tokens
