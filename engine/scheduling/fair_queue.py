"""Who is next: callers share the engine by weight, and each one's own sequences go in order.

Every caller has a clock that its tokens drive: each token served moves it by 1 / weight. Whoever's
clock is furthest behind is next (the virtual token counter of Sheng et al., "Fairness in Serving
Large Language Models", 2024). Who comes back after a rest starts level with those who are busy, so
nobody saves up; who was ahead stays ahead. Priorities come before clocks: a lower number runs
first, whoever calls.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from engine.scheduling.caller import Caller
from engine.scheduling.sequence import turn_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.scheduling.sequence import Sequence

_MAX_RESTING_CALLERS = 1024  # whose clocks are kept, so that leaving and coming back gains nothing


class FairQueue:
    """Sequences that wait for a slot, and the callers they wait for."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}
        # Of those who wait: in the order in which their sequences will run, none of them empty.
        self._waiting: dict[Caller, list[Sequence]] = {}
        self._num_waiting = 0
        self._num_busy = 0
        self._time = 0.0  # of the busy caller who is furthest behind; never goes back

    def __len__(self) -> int:
        """Count the waiting sequences, paused ones included."""
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over them, in no particular order."""
        for waiting in self._waiting.values():
            yield from waiting

    @property
    def num_busy_callers(self) -> int:
        """How many callers have any sequence in the engine."""
        return self._num_busy

    def caller(self, name: str, weight: float) -> Caller:
        """Find a caller, or take a new one in; the weight is the latest one told."""
        caller = self._callers.get(name)
        if caller is None:
            self._forget_resting()
            caller = self._callers[name] = Caller(name, weight, self._time)
        caller.weight = weight
        return caller

    def enter(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        caller = sequence.caller
        if not caller.num_sequences:
            self._advance_time()
            caller.clock = max(caller.clock, self._time)
            self._num_busy += 1
        caller.num_sequences += 1
        self.put_back(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Queue a sequence that ran before, by its arrival."""
        insort(self._waiting.setdefault(sequence.caller, []), sequence, key=turn_of)
        self._num_waiting += 1

    def peek(self) -> Sequence | None:
        """Return who is next."""
        if not self._num_waiting:
            return None
        heads = (waiting[0] for waiting in self._waiting.values())
        return min(heads, key=lambda head: (head.priority, head.caller.clock, head.arrival))

    def take(self, sequence: Sequence) -> None:
        """Let a sequence out of the queue, to run or to end."""
        waiting = self._waiting[sequence.caller]
        waiting.remove(sequence)
        if not waiting:
            del self._waiting[sequence.caller]
        self._num_waiting -= 1

    def leave(self, sequence: Sequence) -> None:
        """Count a sequence as over, which is not in the queue any more."""
        caller = sequence.caller
        caller.num_sequences -= 1
        if not caller.num_sequences:
            self._num_busy -= 1
        if not self._num_busy:  # nobody went short: what was served until now is forgotten
            self._time = max(self._time, *(each.clock for each in self._callers.values()))

    def _advance_time(self) -> None:
        busy = [caller.clock for caller in self._callers.values() if caller.num_sequences]
        if busy:
            self._time = max(self._time, min(busy))

    def _forget_resting(self) -> None:
        """Drop callers who would start level with the others in any case."""
        if len(self._callers) < _MAX_RESTING_CALLERS:
            return
        self._advance_time()
        for name, caller in list(self._callers.items()):
            if not caller.num_sequences and caller.clock <= self._time:
                del self._callers[name]
