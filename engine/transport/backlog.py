"""What waits at an engine, as its client knows it, so that overload is refused at once.

The engine may be in the middle of a long step, so its client decides: by what the engine last
reported, and what was sent since. That is never less than the truth.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.scheduling.admission import Admission

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """Counts what was sent to an engine and has to wait there."""

    def __init__(self, limits: QueueLimits) -> None:
        self._admission = Admission(
            max_queued_seqs=limits.max_queued_seqs,
            max_queued_tokens=limits.max_queued_tokens,
            max_wait_s=limits.max_queue_wait_s,
        )
        # As the engine last reported.
        self._num_reported_seqs = 0
        self._num_reported_tokens = 0
        self._num_free_slots = 0
        self._unreported: deque[_Sent] = deque()  # the engine has said nothing of these yet

    @property
    def num_seqs(self) -> int:
        """Count the sequences that wait: those that no free slot is left for."""
        sent = self._num_reported_seqs + sum(message.num_seqs for message in self._unreported)
        return max(0, sent - self._num_free_slots)

    def enter(self, number: int, nums_tokens: Sequence[int]) -> None:
        """Count the sequences of one request, which the message of this number will carry.

        They wait together or not at all: a request of more sequences than may wait would never be
        let in otherwise. Raises QueueFullError where they may not wait.
        """
        num_tokens = sum(nums_tokens)
        self._admission.num_seqs = self.num_seqs
        self._admission.num_tokens = self._num_reported_tokens + sum(
            message.num_tokens for message in self._unreported
        )
        self._admission.check(num_tokens)
        if self._unreported and self._unreported[-1].number == number:
            self._unreported[-1].num_seqs += len(nums_tokens)
            self._unreported[-1].num_tokens += num_tokens
        else:
            self._unreported.append(_Sent(number, len(nums_tokens), num_tokens))

    def update(self, number: int, statistics: EngineStatistics) -> None:
        """Take over what the engine says; number: of the last message it had taken in."""
        while self._unreported and self._unreported[0].number <= number:
            self._unreported.popleft()
        self._num_reported_seqs = statistics.num_queued_seqs
        self._num_reported_tokens = statistics.num_queued_tokens
        self._num_free_slots = statistics.num_free_slots
        self._admission.prefill_tokens_per_s = statistics.prefill_tokens_per_s
