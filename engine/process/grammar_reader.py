"""Reads the grammars of requests off the step's thread: one may take seconds, and no step waits.

A sequence with a grammar joins the engine once its grammar has been read; until then it waits as
those do that the engine has queued, and its time runs. Everything but the reading itself belongs to
the loop's thread.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from engine.errors import DeadlineExceededError, EngineError, InvalidConstraintError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.constraint import Constraint
    from engine.request import SequenceRequest
    from engine.statistics import EngineStatistics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Reading:
    request: SequenceRequest
    constraint: Future[Constraint | None]
    began_at: float


class GrammarReader:
    """Grammars being read, one after the other; those of the background beside them."""

    def __init__(
        self,
        read: Callable[[SequenceRequest], Constraint | None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """wake: called in another thread when a grammar has been read; clock: in seconds."""
        self._read = read
        self._wake = wake
        self._clock = clock
        # They start when needed. The background has its own, so that nobody waits for a batch's.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._background_thread = ThreadPoolExecutor(1, thread_name_prefix="background-grammars")
        self._readings: dict[int, _Reading] = {}  # by sequence id

    def begin(self, request: SequenceRequest) -> None:
        began_at = self._clock()
        thread = self._background_thread if request.is_background else self._thread
        constraint = thread.submit(self._read_in_time, request, began_at)
        self._readings[request.sequence_id] = _Reading(request, constraint, began_at)
        constraint.add_done_callback(lambda _: self._wake())

    def drop(self, sequence_id: int) -> None:
        """Forget a sequence that ended before its grammar was read; others are left alone."""
        reading = self._readings.pop(sequence_id, None)
        if reading is not None:
            reading.constraint.cancel()

    def take_read(self) -> Iterator[tuple[SequenceRequest, Constraint | EngineError | None]]:
        """Give the requests whose grammar has been read, each with what came of it.

        Of their time is left what the reading did not take; whose time is over is given, too.
        """
        for reading in list(self._readings.values()):
            sequence_id = reading.request.sequence_id
            try:
                request = self._with_time_left(reading.request, reading.began_at)
            except DeadlineExceededError as error:
                self.drop(sequence_id)
                yield reading.request, error
                continue
            if reading.constraint.done():
                del self._readings[sequence_id]
                yield request, _outcome(reading.constraint)

    def counted(self, statistics: EngineStatistics) -> EngineStatistics:
        """Count those whose grammars are being read among those who wait."""
        if not self._readings:
            return statistics
        requests = [reading.request for reading in self._readings.values()]
        waiting = [each for each in requests if not each.is_background]
        num_tokens = sum(len(each.prompt_token_ids) for each in waiting)
        num_background = len(requests) - len(waiting)
        return replace(
            statistics,
            num_waiting=statistics.num_waiting + len(waiting),
            num_background_waiting=statistics.num_background_waiting + num_background,
            num_queued_seqs=statistics.num_queued_seqs + len(waiting),
            num_queued_tokens=statistics.num_queued_tokens + num_tokens,
        )

    def close(self) -> None:
        """Start no more; what is being read is left to its own end."""
        for thread in (self._thread, self._background_thread):
            thread.shutdown(wait=False, cancel_futures=True)

    def _read_in_time(self, request: SequenceRequest, began_at: float) -> Constraint | None:
        """Read a grammar, unless nobody waits for it any more: others wait behind it."""
        return self._read(self._with_time_left(request, began_at))

    def _with_time_left(self, request: SequenceRequest, began_at: float) -> SequenceRequest:
        """Return a request with the time that is left to it. Raises DeadlineExceededError."""
        if request.timeout_s is None:
            return request
        left = began_at + request.timeout_s - self._clock()
        if left <= 0:
            raise DeadlineExceededError(
                "the time allowed was over before the request's grammar was read; allow more, or"
                " come back when less is going on"
            )
        return replace(request, timeout_s=left)


def _outcome(constraint: Future[Constraint | None]) -> Constraint | EngineError | None:
    try:
        return constraint.result()
    except EngineError as error:
        return error
    except Exception as error:
        # A fault of whatever reads grammars is that sequence's end, not the engine's.
        log.exception("grammar_failed")
        return InvalidConstraintError(f"the grammar could not be read: {type(error).__name__}")
