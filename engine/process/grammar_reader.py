"""Reads the grammars of requests off the step's thread: one may take seconds, and no step waits.

A sequence with a grammar joins the engine once its grammar has been read. Everything but the
reading itself belongs to the loop's thread.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from engine.errors import EngineError, InvalidConstraintError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.constraint import Constraint
    from engine.request import SequenceRequest

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Reading:
    request: SequenceRequest
    constraint: Future[Constraint | None]


class GrammarReader:
    """Grammars being read, one after the other."""

    def __init__(
        self, read: Callable[[SequenceRequest], Constraint | None], wake: Callable[[], None]
    ) -> None:
        """wake: called in another thread when a grammar has been read."""
        self._read = read
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")  # starts when needed
        self._readings: dict[int, _Reading] = {}  # by sequence id

    def begin(self, request: SequenceRequest) -> None:
        constraint = self._thread.submit(self._read, request)
        self._readings[request.sequence_id] = _Reading(request, constraint)
        constraint.add_done_callback(lambda _: self._wake())

    def drop(self, sequence_id: int) -> None:
        """Forget a sequence that ended before its grammar was read; others are left alone."""
        reading = self._readings.pop(sequence_id, None)
        if reading is not None:
            reading.constraint.cancel()

    def take_read(self) -> Iterator[tuple[SequenceRequest, Constraint | EngineError | None]]:
        """Give the requests whose grammar has been read, each with what came of it."""
        for reading in [one for one in self._readings.values() if one.constraint.done()]:
            del self._readings[reading.request.sequence_id]
            yield reading.request, _outcome(reading.constraint)

    def close(self) -> None:
        """Start no more; what is being read is left to its own end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _outcome(constraint: Future[Constraint | None]) -> Constraint | EngineError | None:
    try:
        return constraint.result()
    except EngineError as error:
        return error
    except Exception as error:
        # A fault of whatever reads grammars is that sequence's end, not the engine's.
        log.exception("grammar_failed")
        return InvalidConstraintError(f"the grammar could not be read: {type(error).__name__}")
