"""Who holds a slot and blocks: sequences are admitted, paused, preempted and ended here.

A sequence that ended keeps its blocks while a launched step still writes to them. What changes by
the way (who starts, which block tables grow) is kept for the batch that is being planned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import BlockAccountingError
from engine.scheduling.batch import NewBlock, SlotStart
from engine.scheduling.sequence import (
    Sequence,
    SequenceState,
    first_to_go,
    last_in_turn,
    slot_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.scheduling.block_manager import BlockManager
    from engine.scheduling.counters import Counters
    from engine.scheduling.prefix_sharing import PrefixSharing
    from engine.scheduling.queues import Queues

# A caller who waits goes before one who runs when it lags by so many of its own tokens; by more
# where somebody's cache would have to be computed again.
FAIR_QUANTUM = 64
COSTLY_FAIR_QUANTUM = 256


class Residency:
    """The sequences of an engine, from their arrival to their end, and what each holds."""

    def __init__(
        self,
        max_num_seqs: int,
        blocks: BlockManager,
        prefixes: PrefixSharing,
        queue: Queues,
        counters: Counters,
    ) -> None:
        self.sequences: dict[int, Sequence] = {}  # all that are not over and done with
        self.running: dict[int, Sequence] = {}
        self.paused: dict[int, Sequence] = {}
        self.free_slots = list(reversed(range(max_num_seqs)))
        self.num_steps_in_flight = 0
        self.is_short_of_blocks = False  # while running sequences could not grow
        self.is_head_blocked = False  # the next in the queue lacks blocks, not a slot
        self._max_num_seqs = max_num_seqs
        self._blocks = blocks
        self._prefixes = prefixes
        self._queue = queue
        self._counters = counters
        self._num_arrivals = 0
        self._uses_priorities = False
        self._starts: list[SlotStart] = []
        self._new_blocks: list[NewBlock] = []

    def enter(self, sequence: Sequence) -> None:
        """Queue a new sequence, which the admission has let in."""
        self._num_arrivals += 1
        sequence.arrival = self._num_arrivals
        self.sequences[sequence.sequence_id] = sequence
        self._uses_priorities |= sequence.priority != 0
        self._queue.enter(sequence)

    def take_changes(self) -> tuple[tuple[SlotStart, ...], tuple[NewBlock, ...]]:
        """Return who started and which block tables grew since the last call."""
        changes = tuple(self._starts), tuple(self._new_blocks)
        self._starts, self._new_blocks = [], []
        return changes

    # Who gets a slot

    def rebalance(self) -> None:
        """Pause one sequence of whoever is too far ahead of somebody who waits."""
        if self.free_slots and not self.is_head_blocked:
            return
        head = self._queue.peek()
        if head is None:
            return
        if self._queue.of(head).num_busy_callers < 2 and not self._uses_priorities:
            return
        if not (rivals := _of_class(head, self.running.values())):
            return
        last = max(rivals, key=lambda each: (each.priority, each.caller.clock, each.arrival))
        quantum = COSTLY_FAIR_QUANTUM if self.is_head_blocked else FAIR_QUANTUM
        lag = last.caller.clock - head.caller.clock
        if head.priority < last.priority or (
            head.priority == last.priority and lag * head.caller.weight > quantum
        ):
            self.pause(last)

    def admit(self, *, is_background: bool = False) -> Sequence | None:
        """Give a free slot to whoever is next, if there are blocks for it; return who it was."""
        head = self._queue.peek()
        if head is None or head.is_background != is_background:
            return None
        # Paused a moment ago, its last token would not be known yet.
        if not self.free_slots or head.num_steps_in_flight:
            return None
        self.is_head_blocked = not self._provide_blocks(head)
        if self.is_head_blocked:
            return None
        self._queue.take(head)
        self._start(head)
        return head

    def _start(self, sequence: Sequence) -> None:
        if not sequence.has_started:
            sequence.has_started = True
            self._queue.admission_of(sequence).leave(sequence.num_prompt_tokens)
            self._counters.num_prompt_tokens += sequence.num_prompt_tokens
        self.paused.pop(sequence.sequence_id, None)
        sequence.state = SequenceState.RUNNING
        sequence.slot = self.free_slots.pop()
        self.running[sequence.sequence_id] = sequence
        self._starts.append(
            SlotStart(
                sequence.sequence_id,
                sequence.slot,
                sequence.params,
                sequence.seed,
                sequence.prompt_token_ids,
                tuple(sequence.output_token_ids),
                tuple(self._blocks.block_table(sequence.sequence_id)),
            )
        )

    def pause(self, sequence: Sequence) -> None:
        """Take the slot; blocks stay, so that going on costs nothing."""
        self._counters.num_pauses += 1
        self._leave_slot(sequence)
        sequence.state = SequenceState.PAUSED
        self.paused[sequence.sequence_id] = sequence
        self._queue.put_back(sequence)

    def _leave_slot(self, sequence: Sequence) -> None:
        """Free the slot at once: steps run in order, so a launched one is done with it in time."""
        del self.running[sequence.sequence_id]
        self.free_slots.append(slot_of(sequence))
        sequence.slot = None
        sequence.is_decoding = False

    # Who gets blocks

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Grow a running sequence's blocks for so many tokens beyond the computed ones.

        Where none is left, those who came last give theirs back, which needs all launched steps to
        be collected.
        """
        table = self._blocks.block_table(sequence.sequence_id)
        last = sequence.num_computed_tokens + num_tokens - 1
        while last >= len(table) * self._blocks.block_size:
            block = self._blocks.grow(sequence.sequence_id)
            if block is not None:
                self._new_blocks.append(NewBlock(slot_of(sequence), len(table) - 1, block))
                continue
            if self.num_steps_in_flight:
                self.is_short_of_blocks = True
                return False
            victim = first_to_go(self.paused.values(), self.running.values())
            self.preempt(victim)
            if victim is sequence:
                self._drop_lost_blocks()
                return False
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take slot and blocks; what was computed is computed again later, unless still cached."""
        self._counters.num_preemptions += 1
        if sequence.state is SequenceState.RUNNING:
            self._leave_slot(sequence)
            self._queue.put_back(sequence)
        self.paused.pop(sequence.sequence_id, None)
        sequence.state = SequenceState.WAITING
        _free_blocks(self._blocks, sequence)
        sequence.is_suspect = False
        sequence.num_computed_tokens = 0
        sequence.num_registered_blocks = 0

    def _drop_lost_blocks(self) -> None:
        """Leave out of the batch what was given in this step to whoever has lost its slot since."""
        held = {slot_of(each) for each in self.running.values()}
        self._new_blocks = [new for new in self._new_blocks if new.slot in held]

    def _provide_blocks(self, sequence: Sequence) -> bool:
        """See to it that a sequence holds blocks for all its known tokens."""
        if sequence.state is SequenceState.WAITING:
            return self._allocate(sequence)
        held = len(self._blocks.block_table(sequence.sequence_id))
        missing = self._blocks.num_blocks_for(sequence.num_known_tokens) - held
        while missing > self._blocks.num_free_blocks:
            if not self._reclaim(sequence):
                return False
        for _ in range(missing):
            self._blocks.grow(sequence.sequence_id)
        return True

    def _allocate(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks, cached ones where its beginning is known."""
        blocks, num_tokens = self._blocks, sequence.num_known_tokens
        prefix = self._prefixes.find(sequence)
        reserve = len(self.running)  # those who run will want a block each before long
        # Counted anew each time: blocks of the prefix that were given back keep their names, but
        # are among the free ones that this sequence uses up.
        while blocks.num_missing_blocks(num_tokens, prefix) + reserve > blocks.num_free_blocks:
            if not self._reclaim(sequence):
                return False
        blocks.allocate(
            sequence.sequence_id, num_tokens, prefix, is_background=sequence.is_background
        )
        sequence.num_computed_tokens = len(prefix) * blocks.block_size
        sequence.num_registered_blocks = len(prefix)
        sequence.num_charged_tokens = max(sequence.num_charged_tokens, sequence.num_computed_tokens)
        if not sequence.has_started:  # later it may find what it computed itself
            sequence.num_cached_prompt_tokens = sequence.num_computed_tokens
        self._counters.note_lookup(sequence)
        return True

    def _reclaim(self, sequence: Sequence) -> bool:
        """Have one who is paused give its blocks back to this one; whether there was any."""
        idle = [
            paused
            for paused in self.paused.values()
            if not paused.num_steps_in_flight and paused is not sequence
        ]
        if idle:
            self.preempt(last_in_turn(idle))
        return bool(idle)

    # Who has ended

    def end(self, sequence: Sequence) -> None:
        """End a sequence at whatever stage it is."""
        if sequence.state is SequenceState.RUNNING:
            self._leave_slot(sequence)
        else:
            self.paused.pop(sequence.sequence_id, None)
            self._queue.take(sequence)
            if not sequence.has_started:
                self._queue.admission_of(sequence).leave(sequence.num_prompt_tokens)
        self._queue.leave(sequence)
        holds_blocks = sequence.state is not SequenceState.WAITING
        sequence.state = SequenceState.ENDED
        if holds_blocks:
            self.release_if_idle(sequence)
        else:
            del self.sequences[sequence.sequence_id]

    def release_if_idle(self, sequence: Sequence) -> None:
        """Take an ended sequence's blocks back, unless a launched step still writes to them."""
        if not sequence.num_steps_in_flight:
            del self.sequences[sequence.sequence_id]
            _free_blocks(self._blocks, sequence)

    def check(self) -> None:
        """Raise `BlockAccountingError` unless only living sequences hold blocks and slots."""
        self._blocks.check()
        holders = {
            sequence.sequence_id
            for sequence in self.sequences.values()
            if sequence.state is not SequenceState.WAITING
        }
        if self._blocks.owners != holders:
            raise BlockAccountingError(
                f"sequences {sorted(self._blocks.owners ^ holders)} hold blocks without"
                " running, or run without blocks"
            )
        slots = [each.slot for each in self.sequences.values() if each.slot is not None]
        if sorted(slots + self.free_slots) != list(range(self._max_num_seqs)):
            raise BlockAccountingError(
                f"{self._max_num_seqs} slots, held {sorted(slots)}, free {sorted(self.free_slots)}"
            )
        num_queued = sum(not sequence.has_started for sequence in self._queue)
        num_counted = self._queue.admission.num_seqs + self._queue.background_admission.num_seqs
        if num_queued != num_counted:
            raise BlockAccountingError(f"{num_queued} sequences wait, {num_counted} are counted")


def _of_class(head: Sequence, sequences: Iterable[Sequence]) -> list[Sequence]:
    """Return those that are of the background if this one is, and those that are not if not."""
    return [each for each in sequences if each.is_background == head.is_background]


def _free_blocks(blocks: BlockManager, sequence: Sequence) -> None:
    # Whether keys and values are finite shows in logits alone, those of a first token.
    is_unseen = not sequence.output_token_ids
    blocks.free(sequence.sequence_id, is_suspect=sequence.is_suspect, is_unseen=is_unseen)
