"""Two queues, one behind the other: what waits in the background comes after everything else.

Each class has callers of its own, so that what somebody's batch was served never counts against
what they ask for themselves, and a batch that goes without does not hold the others' clocks back.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from engine.scheduling.admission import Admission
from engine.scheduling.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.scheduling.caller import Caller
    from engine.scheduling.sequence import Sequence


class Queues:
    """Sequences that wait for a slot: those of the foreground, and those of the background."""

    def __init__(self, admission: Admission) -> None:
        """admission: of the foreground; the background's only counts, its sender bounds it."""
        self.foreground = FairQueue()
        self.background = FairQueue()
        self.admission = admission
        self.background_admission = Admission()

    def __len__(self) -> int:
        """Count the waiting sequences of both."""
        return len(self.foreground) + len(self.background)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over them, in no particular order."""
        return chain(self.foreground, self.background)

    def of(self, sequence: Sequence) -> FairQueue:
        """Return the queue in which a sequence waits."""
        return self.background if sequence.is_background else self.foreground

    def admission_of(self, sequence: Sequence) -> Admission:
        """Return what counts a sequence until it first runs."""
        return self.background_admission if sequence.is_background else self.admission

    def caller(self, name: str, weight: float, *, is_background: bool) -> Caller:
        """Find a caller of one class; see `FairQueue.caller`."""
        queue = self.background if is_background else self.foreground
        return queue.caller(name, weight)

    def enter(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.of(sequence).enter(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Queue a sequence that ran before, by its arrival."""
        self.of(sequence).put_back(sequence)

    def peek(self) -> Sequence | None:
        """Return who is next: of the background only where nothing else waits."""
        return self.foreground.peek() or self.background.peek()

    def take(self, sequence: Sequence) -> None:
        """Let a sequence out of the queue, to run or to end."""
        self.of(sequence).take(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Count a sequence as over, which is not in the queue any more."""
        self.of(sequence).leave(sequence)
