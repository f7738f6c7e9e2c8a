"""What waits at an engine, as its client knows it, so that overload is refused at once.

The engine may be in the middle of a long step, so its client decides: by what the engine last
reported, and what was sent since. That is never less than the truth. A request may take its place
before its prompts are known, so that one which cannot be queued costs no more than its refusal.
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


class Place:
    """Room in the queue for a request's sequences, whose prompts are on their way."""

    __slots__ = ("_backlog", "num_seqs")

    def __init__(self, backlog: Backlog, num_seqs: int) -> None:
        self.num_seqs = num_seqs
        self._backlog: Backlog | None = backlog

    def is_held_in(self, backlog: Backlog) -> bool:
        """Whether it still keeps room there: it was neither used nor given up."""
        return self._backlog is backlog

    def release(self) -> None:
        """Give the room up; without effect once it was used or given up."""
        if self._backlog is not None:
            self._backlog.num_reserved -= self.num_seqs
            self._backlog = None


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
        self._num_unreported_seqs = self._num_unreported_tokens = 0  # theirs, all together
        self.num_reserved = 0  # sequences that have their place, and no prompt yet

    @property
    def num_seqs(self) -> int:
        """Count the sequences that wait: those that no free slot is left for."""
        return self._num_waiting(num_ahead=0)

    def _num_waiting(self, num_ahead: int) -> int:
        sent = self._num_reported_seqs + self._num_unreported_seqs
        return max(0, sent + self.num_reserved + num_ahead - self._num_free_slots)

    def require_room(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError where not even sequences without a prompt may wait.

        num_ahead: sequences that are about to reserve their places, and come before.
        """
        self._look(num_ahead)
        self._admission.check(0)

    def reserve(self, num_seqs: int, *, is_background: bool = False) -> Place:
        """Keep room for the sequences of one request, as long as its place is held.

        They count as waiting; those of the background take nobody's room, and need none. Raises
        QueueFullError.
        """
        if is_background:
            return Place(self, 0)
        self.require_room()
        self.num_reserved += num_seqs
        return Place(self, num_seqs)

    def enter(
        self,
        number: int,
        nums_tokens: Sequence[int],
        place: Place | None = None,
        is_background: bool = False,
    ) -> None:
        """Count the sequences of one request, which the message of this number will carry.

        They wait together or not at all: a request of more sequences than may wait would never be
        let in otherwise. place: what was reserved for them, which is used up; for their tokens
        there must be room all the same. Raises QueueFullError where they may not wait; those of the
        background always may, as whoever sends them bounds how many there are.
        """
        num_tokens = sum(nums_tokens)
        has_place = place is not None and place.is_held_in(self)
        if place is not None:
            place.release()
        if is_background:
            return
        self._look()
        self._admission.check(num_tokens, has_place=has_place)
        self._num_unreported_seqs += len(nums_tokens)
        self._num_unreported_tokens += num_tokens
        if self._unreported and self._unreported[-1].number == number:
            self._unreported[-1].num_seqs += len(nums_tokens)
            self._unreported[-1].num_tokens += num_tokens
        else:
            self._unreported.append(_Sent(number, len(nums_tokens), num_tokens))

    def _look(self, num_ahead: int = 0) -> None:
        """Take over what waits now."""
        self._admission.num_seqs = self._num_waiting(num_ahead)
        self._admission.num_tokens = self._num_reported_tokens + self._num_unreported_tokens

    def update(self, number: int, statistics: EngineStatistics) -> None:
        """Take over what the engine says; number: of the last message it had taken in."""
        while self._unreported and self._unreported[0].number <= number:
            reported = self._unreported.popleft()
            self._num_unreported_seqs -= reported.num_seqs
            self._num_unreported_tokens -= reported.num_tokens
        self._num_reported_seqs = statistics.num_queued_seqs
        self._num_reported_tokens = statistics.num_queued_tokens
        self._num_free_slots = statistics.num_free_slots
        self._admission.prefill_tokens_per_s = statistics.prefill_tokens_per_s
