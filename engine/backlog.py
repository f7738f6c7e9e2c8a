"""What waits at an engine, as its client knows it, so that overload is refused at once.

The engine decides by the same bounds, but may be in the middle of a long step. The client adds what
it has sent since the engine last told how things stand: never less than the truth.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.admission import Admission

if TYPE_CHECKING:
    from engine.statistics import EngineStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How much may wait before it first runs; None does not bound."""

    max_queued_seqs: int | None = None
    max_queued_tokens: int | None = None
    max_queue_wait_s: float | None = None  # at the measured rate of prefill


@dataclass(slots=True)
class _Sent:
    """What one message carried."""

    number: int
    num_seqs: int
    num_tokens: int


class Backlog:
    """Counts what was sent to an engine and has not run yet."""

    def __init__(self, limits: QueueLimits) -> None:
        self._admission = Admission(
            max_queued_seqs=limits.max_queued_seqs,
            max_queued_tokens=limits.max_queued_tokens,
            max_wait_s=limits.max_queue_wait_s,
        )
        self._untold: deque[_Sent] = deque()  # the engine has said nothing of these yet

    @property
    def num_seqs(self) -> int:
        """Count the sequences that wait."""
        return self._admission.num_seqs

    def enter(self, number: int, num_tokens: int) -> None:
        """Count a sequence that the message of this number will carry.

        Raises QueueFullError where it may not wait.
        """
        self._admission.check(num_tokens)
        self._admission.enter(num_tokens)
        if self._untold and self._untold[-1].number == number:
            self._untold[-1].num_seqs += 1
            self._untold[-1].num_tokens += num_tokens
        else:
            self._untold.append(_Sent(number, 1, num_tokens))

    def update(self, number: int, statistics: EngineStatistics) -> None:
        """Take over what the engine says; number: of the last message it had taken in."""
        while self._untold and self._untold[0].number <= number:
            self._untold.popleft()
        self._admission.num_seqs = statistics.num_queued_seqs
        self._admission.num_tokens = statistics.num_queued_tokens
        self._admission.prefill_tokens_per_s = statistics.prefill_tokens_per_s
        for sent in self._untold:
            self._admission.num_seqs += sent.num_seqs
            self._admission.num_tokens += sent.num_tokens
