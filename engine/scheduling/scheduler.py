"""Decides which sequences run next, and how many of their tokens.

The readable front of this package: a step is planned by `step_planner`, what it sampled is taken in
by `output_processor`, who holds a slot and blocks meanwhile is `residency`'s. All of it knows
lengths, blocks and budgets, and nothing of tensors, text or HTTP, so that every policy can be
tested in microseconds.

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

import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from engine.errors import DeadlineExceededError, OutOfMemoryError
from engine.scheduling.admission import Admission
from engine.scheduling.background import Background
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.counters import Counters
from engine.scheduling.mask_reader import MaskReader
from engine.scheduling.output_processor import OutputProcessor
from engine.scheduling.prefix_sharing import PrefixSharing
from engine.scheduling.prompt_planner import PromptPlanner
from engine.scheduling.queues import Queues
from engine.scheduling.residency import Residency
from engine.scheduling.sequence import Sequence, SequenceState
from engine.scheduling.step_planner import StepPlanner
from engine.statistics import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.config import EngineConfig
    from engine.outputs import StepOutput
    from engine.scheduling.batch import SampledTokens, ScheduledBatch
    from engine.scheduling.caller import Caller


class Scheduler:
    """Gives slots to callers by weight, blocks to whoever runs, and tokens to every step."""

    def __init__(
        self, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: in seconds; what deadlines are measured by."""
        self.block_manager = blocks = BlockManager(config.num_blocks, config.block_size)
        self.admission = admission = Admission(
            max_queued_seqs=config.max_queued_seqs,
            max_queued_tokens=config.max_queued_tokens,
            max_wait_s=config.max_queue_wait_s,
        )
        self._clock = clock
        self._deadlines: list[tuple[float, int]] = []  # a heap; ended sequences stay until due
        self._queue = queue = Queues(admission)
        self._counters = counters = Counters()
        self._prefixes = prefixes = PrefixSharing(blocks, is_lasting=config.has_prefix_cache)
        self._residency = residency = Residency(
            config.max_num_seqs, blocks, prefixes, queue, counters
        )
        self._background = background = Background(
            residency, blocks, queue, config.background_every_steps
        )
        masks = MaskReader()
        prompts = PromptPlanner(config, residency, blocks, prefixes, queue, background, masks)
        self._planner = StepPlanner(config, residency, blocks, counters, background, masks, prompts)
        self._outputs = OutputProcessor(residency, counters)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not yet over and done with."""
        return bool(self._residency.sequences)

    @property
    def num_waiting(self) -> int:
        """How many sequences have no slot: new, paused or preempted."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """How many sequences have a slot."""
        return len(self._residency.running)

    @property
    def must_collect_first(self) -> bool:
        """Whether the next step can't be planned before launched ones are collected."""
        with_background = self._background.is_due
        return self._residency.is_short_of_blocks or any(
            sequence.is_watched
            and sequence.needs_last_token
            and (with_background or not sequence.is_background)
            for sequence in self._residency.running.values()
        )

    def statistics(self, *, num_threads: int) -> EngineStatistics:
        """Count what there is and what was done; num_threads: what computes it."""
        counters = self._counters
        num_background = 0
        if self._queue.background.num_busy_callers:  # asked at every step
            num_background = sum(each.is_background for each in self._residency.running.values())
        return EngineStatistics(
            num_running=len(self._residency.running) - num_background,
            num_waiting=len(self._queue.foreground),
            num_background_running=num_background,
            num_background_waiting=len(self._queue.background),
            num_queued_seqs=self.admission.num_seqs,
            num_queued_tokens=self.admission.num_tokens,
            num_free_slots=len(self._residency.free_slots) + num_background,
            num_blocks=self.block_manager.num_blocks,
            num_free_blocks=self.block_manager.num_free_blocks,
            prefill_tokens_per_s=self.admission.prefill_tokens_per_s,
            num_threads=num_threads,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_generated_tokens=counters.num_generated_tokens,
            num_preemptions=counters.num_preemptions,
            num_pauses=counters.num_pauses,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            num_drafted_tokens=counters.num_drafted_tokens,
            num_accepted_tokens=counters.num_accepted_tokens,
        )

    def reset_counters(self) -> None:
        """Count what is done from now on: tests of the engine are nobody's requests."""
        self._counters.reset()

    def caller(self, name: str, weight: float, *, is_background: bool = False) -> Caller:
        """Find the caller of a new sequence."""
        return self._queue.caller(name, weight, is_background=is_background)

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
        if sequence.sequence_id in self._residency.sequences:
            raise ValueError(f"sequence {sequence.sequence_id} was added already; ids must be new")
        admission = self._queue.admission_of(sequence)
        admission.check(sequence.num_prompt_tokens)
        admission.enter(sequence.num_prompt_tokens)
        self._prefixes.set_root(sequence, cache_salt=cache_salt, group=group)
        if timeout_s is not None:
            sequence.deadline = self._clock() + timeout_s
            heappush(self._deadlines, (sequence.deadline, sequence.sequence_id))
        sequence.arrived_at = self._clock()
        self._residency.enter(sequence)

    def abort(self, sequence_id: int) -> None:
        """End a sequence at whatever stage it is; one that ended already is left alone."""
        sequence = self._residency.sequences.get(sequence_id)
        if sequence is not None and sequence.state is not SequenceState.ENDED:
            self._residency.end(sequence)

    def expire(self) -> list[StepOutput]:
        """End the sequences whose time is over, and say so."""
        outputs: list[StepOutput] = []
        now = self._clock() if self._deadlines else 0.0
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, sequence_id = heappop(self._deadlines)
            sequence = self._residency.sequences.get(sequence_id)
            if sequence is None or sequence.deadline != deadline:
                continue
            if sequence.state is not SequenceState.ENDED:
                tokens = len(sequence.output_token_ids)
                error = DeadlineExceededError(
                    f"the time allowed was over after {tokens} generated tokens; allow more, or"
                    " come back when less is going on"
                )
                outputs.append(self._outputs.fail(sequence, error))
        return outputs

    def schedule(self) -> ScheduledBatch | None:
        """Choose what the next step runs; None when there is nothing to run now."""
        batch = self._planner.plan()
        if batch is not None:
            self._residency.num_steps_in_flight += 1
            self._note_starts(batch)
        return batch

    def _note_starts(self, batch: ScheduledBatch) -> None:
        """Measure how long those have waited who leave the queue for the first time."""
        for start in batch.starts:
            sequence = self._residency.sequences[start.sequence_id]
            if sequence.queue_s is None:
                sequence.queue_s = self._clock() - sequence.arrived_at

    def update(self, batch: ScheduledBatch, sampled: SampledTokens) -> list[StepOutput]:
        """Take in what a launched step sampled, and say what each sequence got."""
        self._residency.num_steps_in_flight -= 1
        self._planner.raise_token_limit()
        return self._outputs.process(batch, sampled)

    def retract(self, batches: Iterable[ScheduledBatch]) -> list[StepOutput]:
        """Take back launched steps that ran out of memory, all of them.

        Whoever was in them is computed anew, in smaller steps; a second time it fails. So are those
        who share blocks with them, however often.
        """
        affected: dict[int, Sequence] = {}
        for batch in batches:
            self.block_manager.return_dirty(batch.dirty_blocks)
            for chunk in batch.chunks:
                if chunk.masks is not None:
                    chunk.masks.result()  # nobody else may ask its constraint before that
            self._residency.num_steps_in_flight -= 1
            self._planner.lower_token_limit(batch.num_tokens)
            for sequence_id in batch.sequence_ids:
                sequence = affected[sequence_id] = self._residency.sequences[sequence_id]
                sequence.num_steps_in_flight -= 1
                sequence.num_samples_in_flight = 0
                sequence.is_suspect = True  # its blocks may be named and never written
        # The planner lets nobody in without a token of the step; were there one who found such a
        # block and is in no batch, he would answer from what nobody has written.
        for sequence_id in self.block_manager.sharers(affected):
            sequence = self._residency.sequences[sequence_id]
            sequence.is_suspect = True
            self._residency.preempt(sequence)
        outputs: list[StepOutput] = []
        for sequence in affected.values():
            if sequence.state is SequenceState.ENDED:
                self._residency.release_if_idle(sequence)
                continue
            sequence.num_retractions += 1
            if sequence.num_retractions > 1:
                error = OutOfMemoryError(
                    "the device ran out of memory twice with this sequence; lower max_num_seqs or"
                    " max_num_batched_tokens, or give the KV cache less"
                )
                outputs.append(self._outputs.fail(sequence, error))
            else:
                self._residency.preempt(sequence)
        return outputs

    def check(self) -> None:
        """Raise `BlockAccountingError` unless only living sequences hold blocks and slots."""
        self._residency.check()
