"""Decides which sequences run next, and how many of their tokens.

Knows lengths, blocks and budgets; knows nothing of tensors, text or HTTP, so that every policy can
be tested in microseconds. Tensors are made in `model_input`, blocks are counted in
`block_manager`, callers in `fair_queue`.

A step is scheduled before the one before it is collected, so lengths are known one token ahead and
token ids are not. A sequence that turns out to have ended takes part in one step too many: that
token is dropped, and its blocks stay its own until no launched step writes to them any more.

                schedule N+1        collect N: end token!      collect N+1
    N   ──────────┬───────────────────────┘                         │
    N+1           └── runs, writes to the sequence's blocks ────────┘ token dropped, blocks freed

Where a step can't be planned blindly (a draft or a mask follows from the last token, or blocks have
run out and somebody must give some back), `must_collect_first` says so.
"""

from __future__ import annotations

import secrets
import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from engine.errors import (
    BlockAccountingError,
    DeadlineExceededError,
    EngineError,
    NoCandidatesError,
    NonFiniteLogitsError,
    OutOfMemoryError,
)
from engine.outputs import (
    FinishReason,
    PromptLogprobs,
    SequenceFailure,
    StepOutput,
    TokenOutput,
)
from engine.scheduling.admission import Admission
from engine.scheduling.batch import (
    Decodes,
    NewBlock,
    RowExtras,
    SampledTokens,
    ScheduledBatch,
    ScheduledChunk,
    SlotStart,
)
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.fair_queue import FairQueue
from engine.scheduling.prefix import block_digest, root_digest
from engine.scheduling.sequence import Sequence, SequenceState
from engine.statistics import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.config import EngineConfig
    from engine.outputs import TokenLogprobs
    from engine.scheduling.fair_queue import Caller

# From so many prompt tokens on, prompts run by themselves, every second step: rows beyond some 50
# turn a step from reading weights to arithmetic, so decoding beside them would not be for nothing.
EXCLUSIVE_PREFILL_TOKENS = 256
# A caller who waits goes before one who runs when it lags by so many of its own tokens; by more
# where somebody's cache would have to be computed again.
FAIR_QUANTUM = 64
COSTLY_FAIR_QUANTUM = 256
# Rows of one step that verify drafts: beyond them verifying costs more than it saves.
MAX_DRAFT_ROWS = 48
# Logits of a prompt take memory by the row: 25 MB for these at 49 152 tokens of vocabulary.
MAX_PROMPT_LOGPROB_ROWS = 128


class Scheduler:
    """Gives slots to callers by weight, blocks to whoever runs, and tokens to every step."""

    def __init__(
        self, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: in seconds; what deadlines are measured by."""
        self.block_manager = BlockManager(config.num_blocks, config.block_size)
        self.admission = Admission(
            max_queued_seqs=config.max_queued_seqs,
            max_queued_tokens=config.max_queued_tokens,
            max_wait_s=config.max_queue_wait_s,
        )
        self._config = config
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._queue = FairQueue()
        self._sequences: dict[int, Sequence] = {}  # all that are not over and done with
        self._running: dict[int, Sequence] = {}
        self._paused: dict[int, Sequence] = {}
        self._free_slots = list(reversed(range(config.max_num_seqs)))
        self._deadlines: list[tuple[float, int]] = []  # a heap; ended sequences stay until due
        self._num_arrivals = 0
        self._num_in_flight = 0  # steps
        self._num_held_by_ended = 0  # sequences that ended and hold blocks yet
        self._uses_priorities = False
        self._is_short_of_blocks = False  # while running sequences could not grow
        self._is_head_blocked = False  # the next in the queue lacks blocks, not a slot
        self._were_prompts_last = False
        self._token_limit = (
            config.max_num_batched_tokens
        )  # lower for a while after a lack of memory
        # What the step being scheduled changes by the way.
        self._starts: list[SlotStart] = []
        self._new_blocks: list[NewBlock] = []

        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_preemptions = 0
        self.num_pauses = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.num_drafted_tokens = 0
        self.num_accepted_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not yet over and done with."""
        return bool(self._sequences)

    @property
    def num_waiting(self) -> int:
        """How many sequences have no slot: new, paused or preempted."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """How many sequences have a slot."""
        return len(self._running)

    @property
    def must_collect_first(self) -> bool:
        """Whether the next step can't be planned before launched ones are collected."""
        return self._is_short_of_blocks or any(
            sequence.is_watched and sequence.needs_last_token for sequence in self._running.values()
        )

    def statistics(self) -> EngineStatistics:
        """Count what there is and what was done."""
        return EngineStatistics(
            num_running=len(self._running),
            num_waiting=len(self._queue),
            num_queued_seqs=self.admission.num_seqs,
            num_queued_tokens=self.admission.num_tokens,
            num_free_slots=len(self._free_slots),
            num_blocks=self.block_manager.num_blocks,
            num_free_blocks=self.block_manager.num_free_blocks,
            prefill_tokens_per_s=self.admission.prefill_tokens_per_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_preemptions=self.num_preemptions,
            num_pauses=self.num_pauses,
            prefix_cache_queries=self.prefix_cache_queries,
            prefix_cache_hits=self.prefix_cache_hits,
            num_drafted_tokens=self.num_drafted_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
        )

    def caller(self, name: str, weight: float) -> Caller:
        """Find the caller of a new sequence."""
        return self._queue.caller(name, weight)

    def add(
        self,
        sequence: Sequence,
        *,
        cache_salt: str = "",
        group: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Queue a sequence. Raises `QueueFullError`.

        cache_salt, group: with whom it shares prefixes, see `SequenceRequest`.
        """
        if sequence.sequence_id in self._sequences:
            raise ValueError(f"sequence {sequence.sequence_id} was added already; ids must be new")
        self.admission.check(sequence.num_prompt_tokens)
        self.admission.enter(sequence.num_prompt_tokens)
        self._num_arrivals += 1
        sequence.arrival = self._num_arrivals
        if not self._config.has_prefix_cache:
            own = f"sequence {sequence.sequence_id}" if group is None else f"group {group}"
            cache_salt = f"{own} {cache_salt}"
        sequence.root_digest = root_digest(self._secret, cache_salt)
        self._sequences[sequence.sequence_id] = sequence
        self._uses_priorities |= sequence.priority != 0
        if timeout_s is not None:
            sequence.deadline = self._clock() + timeout_s
            heappush(self._deadlines, (sequence.deadline, sequence.sequence_id))
        self._queue.enter(sequence)

    def abort(self, sequence_id: int) -> None:
        """End a sequence at whatever stage it is; one that ended already is left alone."""
        sequence = self._sequences.get(sequence_id)
        if sequence is not None and sequence.state is not SequenceState.ENDED:
            self._end(sequence)

    def expire(self) -> list[StepOutput]:
        """End the sequences whose time is over, and say so."""
        outputs: list[StepOutput] = []
        now = self._clock() if self._deadlines else 0.0
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, sequence_id = heappop(self._deadlines)
            sequence = self._sequences.get(sequence_id)
            if sequence is None or sequence.deadline != deadline:
                continue
            if sequence.state is not SequenceState.ENDED:
                tokens = len(sequence.output_token_ids)
                error = DeadlineExceededError(
                    f"the time allowed was over after {tokens} generated tokens; allow more, or"
                    " come back when less is going on"
                )
                outputs.append(self._fail(sequence, error))
        return outputs

    def schedule(self) -> ScheduledBatch | None:
        """Choose what the next step runs; None when there is nothing to run now."""
        self._starts, self._new_blocks = [], []
        self._rebalance()
        decodes, drafts, prefills = Decodes(), list[ScheduledChunk](), list[ScheduledChunk]()
        if self._is_turn_of_prompts():
            prefills = self._schedule_prefills(self._token_limit)
        self._were_prompts_last = bool(prefills)
        if not prefills:
            decodes, drafts = self._schedule_decodes()
            num_rows = len(decodes) + sum(len(draft.token_ids) for draft in drafts)
            prefills = self._schedule_prefills(self._token_limit - num_rows)
        if not (decodes or drafts or prefills):
            return None
        self._num_in_flight += 1
        return ScheduledBatch(
            decodes,
            (*drafts, *prefills),
            tuple(self._starts),
            tuple(self._new_blocks),
            self.block_manager.take_dirty(),
        )

    def update(self, batch: ScheduledBatch, sampled: SampledTokens) -> list[StepOutput]:
        """Take in what a launched step sampled, and say what each sequence got."""
        outputs: list[StepOutput] = []
        self._num_in_flight -= 1
        self._token_limit = min(2 * self._token_limit, self._config.max_num_batched_tokens)
        bad = sampled.failed | sampled.no_candidates
        token_ids, logprobs = sampled.token_ids, sampled.logprobs
        for sequence_id in batch.decodes.sequence_ids:
            sequence = self._sequences[sequence_id]
            sequence.num_steps_in_flight -= 1
            sequence.num_samples_in_flight -= 1
            if sequence.state is SequenceState.ENDED:
                self._release_if_idle(sequence)
            elif sequence_id in bad:
                outputs.append(self._fail(sequence, _reason(sequence, sampled)))
            else:
                reported = logprobs.get(sequence_id) if logprobs else None
                self._append(sequence, token_ids[sequence_id], reported, outputs)
        for chunk in batch.chunks:
            self._update_chunk(chunk, sampled, outputs)
        return outputs

    def retract(self, batches: Iterable[ScheduledBatch]) -> list[StepOutput]:
        """Take back launched steps that ran out of memory, all of them.

        Whoever was in them is computed anew, in smaller steps; a second time it fails.
        """
        affected: dict[int, Sequence] = {}
        for batch in batches:
            self._num_in_flight -= 1
            self._token_limit = max(1, min(self._token_limit, batch.num_tokens) // 2)
            for sequence_id in batch.sequence_ids:
                sequence = affected[sequence_id] = self._sequences[sequence_id]
                sequence.num_steps_in_flight -= 1
                sequence.num_samples_in_flight = 0
                sequence.is_suspect = True  # its blocks may be named and never written
        outputs: list[StepOutput] = []
        for sequence in affected.values():
            if sequence.state is SequenceState.ENDED:
                self._release_if_idle(sequence)
                continue
            sequence.num_retractions += 1
            if sequence.num_retractions > 1:
                error = OutOfMemoryError(
                    "the device ran out of memory twice with this sequence; lower max_num_seqs or"
                    " max_num_batched_tokens, or give the KV cache less"
                )
                outputs.append(self._fail(sequence, error))
            else:
                self._preempt(sequence)
        return outputs

    def check(self) -> None:
        """Raise `BlockAccountingError` unless only living sequences hold blocks and slots."""
        self.block_manager.check()
        holders = {
            sequence.sequence_id
            for sequence in self._sequences.values()
            if sequence.state is not SequenceState.WAITING
        }
        if self.block_manager.owners != holders:
            raise BlockAccountingError(
                f"sequences {sorted(self.block_manager.owners ^ holders)} hold blocks without"
                " running, or run without blocks"
            )
        slots = [
            sequence.slot for sequence in self._sequences.values() if sequence.slot is not None
        ]
        if sorted(slots + self._free_slots) != list(range(self._config.max_num_seqs)):
            raise BlockAccountingError(
                f"{self._config.max_num_seqs} slots, held {sorted(slots)}, free"
                f" {sorted(self._free_slots)}"
            )
        queued = [sequence for sequence in self._queue if not sequence.has_started]
        if len(queued) != self.admission.num_seqs:
            raise BlockAccountingError(
                f"{len(queued)} sequences wait, {self.admission.num_seqs} are counted"
            )

    # Who runs

    def _rebalance(self) -> None:
        """Pause one sequence of whoever is too far ahead of somebody who waits."""
        if self._free_slots and not self._is_head_blocked:
            return
        if self._queue.num_busy_callers < 2 and not self._uses_priorities:
            return
        head = self._queue.peek()
        if head is None or not self._running:
            return
        last = max(
            self._running.values(),
            key=lambda each: (each.priority, each.caller.clock, each.arrival),
        )
        quantum = COSTLY_FAIR_QUANTUM if self._is_head_blocked else FAIR_QUANTUM
        lag = last.caller.clock - head.caller.clock
        if head.priority < last.priority or (
            head.priority == last.priority and lag * head.caller.weight > quantum
        ):
            self._pause(last)

    def _admit(self) -> Sequence | None:
        """Give a free slot to whoever is next, if there are blocks for it; return who it was."""
        head = self._queue.peek()
        # Paused a moment ago, its last token would not be known yet.
        if head is None or not self._free_slots or head.num_steps_in_flight:
            return None
        self._is_head_blocked = not self._provide_blocks(head)
        if self._is_head_blocked:
            return None
        self._queue.take(head)
        self._start(head)
        return head

    def _provide_blocks(self, sequence: Sequence) -> bool:
        """See to it that a sequence holds blocks for all its known tokens."""
        blocks = self.block_manager
        if sequence.state is SequenceState.WAITING:
            return self._allocate(sequence)
        held = len(blocks.block_table(sequence.sequence_id))
        missing = blocks.num_blocks_for(sequence.num_known_tokens) - held
        if missing > 0 and not self._reclaim(missing, sequence):
            return False
        for _ in range(missing):
            blocks.grow(sequence.sequence_id)
        return True

    def _reclaim(self, num_blocks: int, sequence: Sequence) -> bool:
        """See to it that so many blocks are free; those who are paused give theirs back."""
        while num_blocks > self.block_manager.num_free_blocks:
            idle = [
                paused
                for paused in self._paused.values()
                if not paused.num_steps_in_flight and paused is not sequence
            ]
            if not idle:
                return False
            self._preempt(_last_of(idle))
        return True

    def _allocate(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks, cached ones where its beginning is known."""
        blocks, num_tokens = self.block_manager, sequence.num_known_tokens
        prefix = self._find_prefix(sequence)
        # Those who run will want a block each before long.
        needed = blocks.num_missing_blocks(num_tokens, prefix) + len(self._running)
        if not self._reclaim(needed, sequence):
            return False
        blocks.allocate(sequence.sequence_id, num_tokens, prefix)
        sequence.num_computed_tokens = len(prefix) * blocks.block_size
        sequence.num_registered_blocks = len(prefix)
        sequence.num_charged_tokens = max(sequence.num_charged_tokens, sequence.num_computed_tokens)
        self.prefix_cache_queries += num_tokens
        self.prefix_cache_hits += sequence.num_computed_tokens
        return True

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if sequence.params.prompt_logprobs is not None:
            return []  # every token of the prompt must be computed to be told of
        # The last token is computed in any case: something must give the logits.
        num_blocks = (sequence.num_known_tokens - 1) // self.block_manager.block_size
        self._extend_digests(sequence, num_blocks)
        return self.block_manager.find_prefix(sequence.block_digests[:num_blocks])

    def _start(self, sequence: Sequence) -> None:
        if not sequence.has_started:
            sequence.has_started = True
            self.admission.leave(sequence.num_prompt_tokens)
            self.num_prompt_tokens += sequence.num_prompt_tokens
        self._paused.pop(sequence.sequence_id, None)
        sequence.state = SequenceState.RUNNING
        sequence.slot = self._free_slots.pop()
        self._running[sequence.sequence_id] = sequence
        self._starts.append(
            SlotStart(
                sequence.sequence_id,
                sequence.slot,
                sequence.params,
                sequence.seed,
                sequence.prompt_token_ids,
                tuple(sequence.output_token_ids),
                tuple(self.block_manager.block_table(sequence.sequence_id)),
            )
        )

    def _pause(self, sequence: Sequence) -> None:
        """Take the slot; blocks stay, so that going on costs nothing."""
        self.num_pauses += 1
        self._leave_slot(sequence)
        sequence.state = SequenceState.PAUSED
        self._paused[sequence.sequence_id] = sequence
        self._queue.put_back(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Take slot and blocks; what was computed is computed again later, unless still cached."""
        self.num_preemptions += 1
        if sequence.state is SequenceState.RUNNING:
            self._leave_slot(sequence)
            self._queue.put_back(sequence)
        self._paused.pop(sequence.sequence_id, None)
        sequence.state = SequenceState.WAITING
        self.block_manager.free(sequence.sequence_id, is_suspect=sequence.is_suspect)
        sequence.is_suspect = False
        sequence.num_computed_tokens = 0
        sequence.num_registered_blocks = 0

    def _leave_slot(self, sequence: Sequence) -> None:
        """Free the slot at once: steps run in order, so a launched one is done with it in time."""
        del self._running[sequence.sequence_id]
        self._free_slots.append(_slot_of(sequence))
        sequence.slot = None
        sequence.is_decoding = False

    # What they run

    def _is_turn_of_prompts(self) -> bool:
        """Whether prompts run by themselves now: many tokens wait, and it is not always them."""
        if self._were_prompts_last:
            return False
        waiting = sum(
            sequence.num_known_tokens - sequence.num_computed_tokens
            for sequence in self._running.values()
            if not sequence.is_decoding
        )
        if self._free_slots and not self._is_head_blocked and self.admission.num_seqs:
            # Only those that would find a slot, as if all were of one length: a long queue must not
            # make every freed slot stop the others' answers for a short prompt.
            share = min(1.0, len(self._free_slots) / self.admission.num_seqs)
            waiting += int(share * self.admission.num_tokens)
        return waiting >= min(EXCLUSIVE_PREFILL_TOKENS, self._config.max_num_batched_tokens)

    def _schedule_decodes(self) -> tuple[Decodes, list[ScheduledChunk]]:
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        drafts: list[ScheduledChunk] = []
        block_size, tables = self.block_manager.block_size, self.block_manager.block_table
        num_rows = 0
        for sequence in self._in_turn():
            if not sequence.is_decoding or num_rows >= self._token_limit:
                continue  # reads its prompt yet, was preempted for those before, or has no room
            launched = len(sequence.output_token_ids) + sequence.num_samples_in_flight
            if launched >= sequence.max_output_tokens:
                continue
            if sequence.is_watched and sequence.needs_last_token:
                if not sequence.num_steps_in_flight and self._reach(sequence, 1):
                    room = min(MAX_DRAFT_ROWS, self._token_limit) - num_rows - 1
                    drafts.append(self._schedule_draft(sequence, room))
                    num_rows += len(drafts[-1].token_ids)
                continue
            position, sequence_id = sequence.num_computed_tokens, sequence.sequence_id
            if position >= len(tables(sequence_id)) * block_size and not self._reach(sequence, 1):
                continue
            ids.append(sequence_id)
            slots.append(sequence.slot)  # type: ignore[arg-type]
            positions.append(position)
            sequence.num_computed_tokens = position + 1
            sequence.num_steps_in_flight += 1
            sequence.num_samples_in_flight += 1
            if position >= sequence.num_charged_tokens:
                sequence.num_charged_tokens = position + 1
                sequence.caller.clock += 1 / sequence.caller.weight
            num_rows += 1
        return Decodes(tuple(ids), tuple(slots), tuple(positions)), drafts

    def _in_turn(self) -> list[Sequence]:
        """Return who runs; where blocks are short, those first who must not go without."""
        running = list(self._running.values())
        if self.block_manager.num_free_blocks < len(running):
            running.sort(key=_order)
        self._is_short_of_blocks = False
        return running

    def _reach(self, sequence: Sequence, num_tokens: int) -> bool:
        """Grow a sequence's blocks for so many tokens beyond the computed ones.

        Where none is left, those who came last give theirs back, which needs all launched steps to
        be collected.
        """
        table = self.block_manager.block_table(sequence.sequence_id)
        last = sequence.num_computed_tokens + num_tokens - 1
        while last >= len(table) * self.block_manager.block_size:
            block = self.block_manager.grow(sequence.sequence_id)
            if block is not None:
                self._new_blocks.append(NewBlock(_slot_of(sequence), len(table) - 1, block))
                continue
            if self._num_in_flight:
                self._is_short_of_blocks = True
                return False
            victim = _last_of(self._paused.values() or self._running.values())
            self._preempt(victim)
            if victim is sequence:
                self._forget_lost_blocks()
                return False
        return True

    def _forget_lost_blocks(self) -> None:
        """Leave out of the batch what was given in this step to whoever has lost its slot since."""
        held = {_slot_of(each) for each in self._running.values()}
        self._new_blocks = [new for new in self._new_blocks if new.slot in held]

    def _schedule_draft(self, sequence: Sequence, room: int) -> ScheduledChunk:
        """Run the last token, with a draft behind it where there is one."""
        start = sequence.num_computed_tokens
        tokens = sequence.known_token_ids(start, sequence.num_known_tokens)
        draft = self._draft(sequence, room)
        extras: tuple[RowExtras, ...] = ()
        if draft or sequence.constraint is not None or sequence.params.bad_words:
            extras = _row_extras(sequence, draft)
        num_samples = 1 + len(draft)
        sequence.num_computed_tokens += len(tokens) + len(draft)  # until it is known what held
        sequence.num_steps_in_flight += 1
        sequence.num_samples_in_flight += 1
        self.num_drafted_tokens += len(draft)
        self._charge(sequence)
        return ScheduledChunk(
            sequence.sequence_id,
            _slot_of(sequence),
            start,
            (*tokens, *draft),
            num_samples,
            extras,
        )

    def _draft(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        """Guess tokens, no more than there is room for without taking anybody's blocks."""
        if sequence.drafter is None or sequence.constraint is not None:
            return ()
        left = sequence.max_output_tokens - len(sequence.output_token_ids) - 1
        limit = min(self._config.num_speculative_tokens, room, left)
        draft = sequence.drafter.propose(limit)
        blocks = self.block_manager
        num_held = len(blocks.block_table(sequence.sequence_id))
        num_tokens = sequence.num_computed_tokens + 1 + len(draft)
        missing = blocks.num_blocks_for(num_tokens) - num_held
        if missing > 0 and blocks.num_free_blocks - missing < len(self._running):
            return draft[: num_held * blocks.block_size - sequence.num_computed_tokens - 1]
        self._reach(sequence, 1 + len(draft))
        return draft

    def _schedule_prefills(self, budget: int) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        for sequence in self._running.values():
            if budget < 1:
                break
            if sequence.is_decoding:
                continue
            chunks.append(self._schedule_prefill(sequence, budget))
            budget -= len(chunks[-1].token_ids)
        # One by one, so that whoever begins like the one before it finds that one's blocks.
        while budget > 0 and (admitted := self._admit()) is not None:
            chunks.append(self._schedule_prefill(admitted, budget))
            budget -= len(chunks[-1].token_ids)
        return chunks

    def _schedule_prefill(self, sequence: Sequence, budget: int) -> ScheduledChunk:
        """Run known tokens: of the prompt, or of an answer that had been interrupted."""
        asks_for_logprobs = sequence.params.prompt_logprobs is not None
        if asks_for_logprobs:
            budget = min(budget, MAX_PROMPT_LOGPROB_ROWS)
        start, end = sequence.num_computed_tokens, sequence.num_known_tokens
        stop = min(end, start + budget)
        is_last = stop == end
        chunk = ScheduledChunk(
            sequence.sequence_id,
            _slot_of(sequence),
            start,
            sequence.known_token_ids(start, stop),
            num_samples=1 if is_last else 0,
            extras=_row_extras(sequence, ()) if is_last and sequence.is_watched else (),
            prompt_targets=(
                sequence.prompt_token_ids[start + 1 : stop + 1]
                if asks_for_logprobs and start + 1 < sequence.num_prompt_tokens
                else None
            ),
        )
        sequence.num_computed_tokens = stop
        sequence.num_steps_in_flight += 1
        if is_last:
            sequence.num_samples_in_flight += 1
            sequence.is_decoding = True
        self._charge(sequence)
        self._register_blocks(sequence)
        return chunk

    def _charge(self, sequence: Sequence) -> None:
        """Move the caller's clock for what it is served for the first time."""
        served = sequence.num_computed_tokens - sequence.num_charged_tokens
        if served > 0:
            sequence.num_charged_tokens += served
            self._queue.charge(sequence, served)

    # What became of it

    def _update_chunk(
        self, chunk: ScheduledChunk, sampled: SampledTokens, outputs: list[StepOutput]
    ) -> None:
        sequence_id = chunk.sequence_id
        sequence = self._sequences[sequence_id]
        sequence.num_steps_in_flight -= 1
        if chunk.num_samples:
            sequence.num_samples_in_flight -= 1
        if sequence.state is SequenceState.ENDED:
            self._release_if_idle(sequence)
            return
        if sequence_id in sampled.failed or sequence_id in sampled.no_candidates:
            outputs.append(self._fail(sequence, _reason(sequence, sampled)))
            return
        if chunk.prompt_targets is not None:
            self._report_prompt_logprobs(sequence, chunk, sampled, outputs)
        if not chunk.num_samples:
            return
        token_ids = sampled.token_ids[sequence_id]
        if chunk.num_drafts:
            self._judge_draft(sequence, chunk, len(token_ids) - 1)
        self._append(sequence, token_ids, sampled.logprobs.get(sequence_id), outputs)

    def _judge_draft(self, sequence: Sequence, chunk: ScheduledChunk, num_accepted: int) -> None:
        """Forget what was computed for the drafts that were not accepted."""
        self.num_accepted_tokens += num_accepted
        if sequence.state is SequenceState.RUNNING:
            num_tokens = len(chunk.token_ids) - chunk.num_drafts
            sequence.num_computed_tokens = chunk.start + num_tokens + num_accepted
        if sequence.drafter is not None:
            sequence.drafter.judge(chunk.num_drafts, num_accepted)

    def _report_prompt_logprobs(
        self,
        sequence: Sequence,
        chunk: ScheduledChunk,
        sampled: SampledTokens,
        outputs: list[StepOutput],
    ) -> None:
        """Tell of prompt tokens, but not again where a preempted sequence reads its prompt anew."""
        reported = sampled.prompt_logprobs[chunk.sequence_id]
        fresh = reported[max(0, sequence.num_reported_prompt_logprobs - chunk.start) :]
        if fresh:
            sequence.num_reported_prompt_logprobs += len(fresh)
            outputs.append(PromptLogprobs(sequence.sequence_id, fresh))

    def _append(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] | None,
        outputs: list[StepOutput],
    ) -> None:
        """Add tokens up to the one that ends the sequence."""
        for index, token_id in enumerate(token_ids):
            sequence.output_token_ids.append(token_id)
            self.num_generated_tokens += 1
            reason = _finish_reason(sequence, token_id)
            outputs.append(
                TokenOutput(
                    sequence.sequence_id,
                    token_id,
                    logprobs[index] if logprobs else None,
                    reason,
                )
            )
            if reason is not None:
                self._end(sequence)
                return
        if sequence.drafter is not None:
            sequence.drafter.extend(token_ids)
        num_full = sequence.num_known_tokens // self.block_manager.block_size
        if num_full > sequence.num_registered_blocks and sequence.state is SequenceState.RUNNING:
            self._register_blocks(sequence)

    def _register_blocks(self, sequence: Sequence) -> None:
        """Let others find the blocks whose tokens are known and computed, or being computed."""
        num_tokens = min(sequence.num_computed_tokens, sequence.num_known_tokens)
        num_full = num_tokens // self.block_manager.block_size
        self._extend_digests(sequence, num_full)
        for index in range(sequence.num_registered_blocks, num_full):
            self.block_manager.register(sequence.sequence_id, index, sequence.block_digests[index])
        sequence.num_registered_blocks = max(sequence.num_registered_blocks, num_full)

    def _extend_digests(self, sequence: Sequence, num_blocks: int) -> None:
        digests, size = sequence.block_digests, self.block_manager.block_size
        while len(digests) < num_blocks:
            start = len(digests) * size
            parent = digests[-1] if digests else sequence.root_digest
            digests.append(block_digest(parent, sequence.known_token_ids(start, start + size)))

    def _fail(self, sequence: Sequence, error: EngineError) -> SequenceFailure:
        if isinstance(error, NonFiniteLogitsError):
            sequence.is_suspect = True
        self._end(sequence)
        return SequenceFailure(sequence.sequence_id, error)

    def _end(self, sequence: Sequence) -> None:
        if sequence.state is SequenceState.RUNNING:
            self._leave_slot(sequence)
        else:
            self._paused.pop(sequence.sequence_id, None)
            self._queue.take(sequence)
            if not sequence.has_started:
                self.admission.leave(sequence.num_prompt_tokens)
        self._queue.leave(sequence)
        if sequence.state is SequenceState.WAITING:
            del self._sequences[sequence.sequence_id]
            sequence.state = SequenceState.ENDED
            return
        sequence.state = SequenceState.ENDED
        self._release_if_idle(sequence)

    def _release_if_idle(self, sequence: Sequence) -> None:
        """Take an ended sequence's blocks back, unless a launched step still writes to them."""
        if not sequence.num_steps_in_flight:
            del self._sequences[sequence.sequence_id]
            self.block_manager.free(sequence.sequence_id, is_suspect=sequence.is_suspect)


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival


def _last_of(sequences: Iterable[Sequence]) -> Sequence:
    """Return who gives way first: the lowest in priority, then the youngest."""
    return max(sequences, key=_order)


def _slot_of(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise BlockAccountingError(f"sequence {sequence.sequence_id} runs without a slot")
    return sequence.slot


def _row_extras(sequence: Sequence, draft: tuple[int, ...]) -> tuple[RowExtras, ...]:
    """Say for each row that is sampled what only the host knows."""
    mask = sequence.constraint.next_mask() if sequence.constraint is not None else None
    words = sequence.params.bad_words
    longest = max(map(len, words), default=1) - 1
    tail = tuple(sequence.output_token_ids[-longest:]) if longest else ()
    return tuple(
        RowExtras(draft[:count], _banned_after((*tail, *draft[:count]), words), mask)
        for count in range(len(draft) + 1)
    )


def _banned_after(tail: tuple[int, ...], words: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Return the tokens that would complete a bad word after these."""
    return tuple(word[-1] for word in words if len(word) == 1 or tail[1 - len(word) :] == word[:-1])


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    if token_id in sequence.end_token_ids:
        return FinishReason.STOP
    if len(sequence.output_token_ids) >= sequence.max_output_tokens:
        return FinishReason.LENGTH
    if sequence.constraint is not None:
        sequence.constraint.advance(token_id)
        if sequence.constraint.is_complete:
            return FinishReason.STOP
    return None


def _reason(sequence: Sequence, sampled: SampledTokens) -> EngineError:
    """Say why a sequence has no next token."""
    if sequence.sequence_id not in sampled.failed:
        return NoCandidatesError(
            f"no token was left to pick after {len(sequence.output_token_ids)} generated ones:"
            " what is allowed, banned and asked for by the grammar excludes every one"
        )
    return NonFiniteLogitsError(
        f"the model gave NaN or Inf after {sequence.num_prompt_tokens} prompt tokens and"
        f" {len(sequence.output_token_ids)} generated ones; the checkpoint or its kernel is at"
        " fault"
    )
