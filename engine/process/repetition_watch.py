"""Notices where requests of different callers all come to repeat one and the same token.

Any model repeats itself now and then; many requests that end in one token look like layers that
compute nothing any more. Costs a dictionary's look-up for each token.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.outputs import TokenOutput
    from engine.request import SequenceRequest

RUN_LENGTH = 16  # of one token, until its sequence counts
MIN_REQUESTS = 6
MIN_CALLERS = 3
WINDOW_S = 600.0
_MAX_SIGHTINGS = 256  # the latest


@dataclass(slots=True)
class _Run:
    """The end of one sequence, as far as it is one token."""

    request: str
    caller: str
    token_id: int = -1  # none yet: ids count from 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A sequence that repeated itself."""

    at: float
    token_id: int
    request: str
    caller: str


class RepetitionWatch:
    """Follows the last tokens of every sequence."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: in seconds."""
        self._clock = clock
        self._runs: dict[int, _Run] = {}  # by sequence id
        self._sightings: deque[_Sighting] = deque(maxlen=_MAX_SIGHTINGS)

    def begin(self, request: SequenceRequest) -> None:
        """Follow a sequence; who does not say who they are count as one caller each."""
        number = request.sequence_id if request.group is None else request.group
        kind = "sequence" if request.group is None else "group"
        name = f"{kind} {number}"
        caller = f"caller {request.caller}" if request.caller else name
        self._runs[request.sequence_id] = _Run(name, caller)

    def drop(self, sequence_id: int) -> None:
        """Follow a sequence no further; unknown ones are left alone."""
        self._runs.pop(sequence_id, None)

    def take_in(self, output: TokenOutput) -> int | None:
        """Follow one more token; return it where too many requests have come to repeat it."""
        run = self._runs.get(output.sequence_id)
        if run is None:
            return None
        if output.finish_reason is not None:
            del self._runs[output.sequence_id]
        if run.token_id != output.token_id:
            run.token_id, run.length = output.token_id, 1
            return None
        run.length += 1
        return self._sight(run) if run.length == RUN_LENGTH else None

    def _sight(self, run: _Run) -> int | None:
        now = self._clock()
        self._sightings.append(_Sighting(now, run.token_id, run.request, run.caller))
        alike = [
            one
            for one in self._sightings
            if one.token_id == run.token_id and now - one.at < WINDOW_S
        ]
        if len({one.request for one in alike}) < MIN_REQUESTS:
            return None
        if len({one.caller for one in alike}) < MIN_CALLERS:
            return None
        self._sightings.clear()
        return run.token_id
