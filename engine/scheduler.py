"""Decides which sequences run next.

Knows lengths, blocks and budgets; knows nothing of tensors, text or HTTP, so that every policy can
be tested in microseconds. Tensors are made in `model_input`, blocks are counted in
`block_manager`.

A step is scheduled before the one before it is collected, so lengths are known one token ahead and
token ids are not. A sequence that turns out to have ended takes part in one step too many: that
token is dropped, and its blocks and slot stay its own until no launched step writes to them any
more.

                schedule N+1        collect N: end token!      collect N+1
    N   ──────────┬───────────────────────┘                         │
    N+1           └── runs, writes to the sequence's blocks ────────┘ token dropped, blocks freed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.batch import SampledTokens, ScheduledBatch, ScheduledDecode, ScheduledPrefill
from engine.block_manager import BlockManager
from engine.errors import BlockAccountingError, NonFiniteLogitsError
from engine.outputs import FinishReason, SequenceFailure, StepOutput, TokenOutput
from engine.sequence import Sequence, SequenceState

if TYPE_CHECKING:
    from engine.config import EngineConfig


class Scheduler:
    """First come, first served; whoever is admitted runs to its end."""

    def __init__(self, config: EngineConfig) -> None:
        self.block_manager = BlockManager(config.num_blocks, config.block_size)
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._max_num_seqs = config.max_num_seqs
        # Dictionaries keep the order of arrival, and let an abort find its sequence at once.
        self._waiting: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._ended: dict[
            int, Sequence
        ] = {}  # only while a launched step still writes to their blocks
        self._free_slots = list(reversed(range(config.max_num_seqs)))

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not yet over and done with."""
        return bool(self._waiting or self._running or self._ended)

    @property
    def num_waiting(self) -> int:
        """How many sequences have not begun."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """How many sequences advance."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that came before."""
        sequence_id = sequence.sequence_id
        if (
            sequence_id in self._waiting
            or sequence_id in self._running
            or sequence_id in self._ended
        ):
            raise ValueError(f"sequence {sequence_id} was added already; ids must be new")
        self._waiting[sequence_id] = sequence

    def abort(self, sequence_id: int) -> None:
        """End a sequence at whatever stage it is; one that ended already is left alone."""
        if sequence := self._waiting.pop(sequence_id, None):
            sequence.state = SequenceState.ENDED
        elif sequence := self._running.get(sequence_id):
            self._end(sequence)

    def schedule(self) -> ScheduledBatch | None:
        """Choose what the next step runs; None when there is nothing to run."""
        decodes = tuple(
            self._schedule_decode(sequence)
            for sequence in self._running.values()
            if sequence.num_launched_outputs < sequence.max_output_tokens
        )
        prefills = tuple(self._schedule_prefill(sequence) for sequence in self._admit())
        return ScheduledBatch(decodes, prefills) if decodes or prefills else None

    def update(self, batch: ScheduledBatch, sampled: SampledTokens) -> list[StepOutput]:
        """Take in what a launched step sampled, and say what each sequence got."""
        outputs: list[StepOutput] = []
        for entry in batch.entries:
            sequence_id = entry.sequence_id
            sequence = self._running.get(sequence_id) or self._ended[sequence_id]
            sequence.num_steps_in_flight -= 1
            if sequence.state is SequenceState.ENDED:
                self._release_if_idle(sequence)
            elif sequence_id in sampled.failed:
                outputs.append(self._fail(sequence))
            else:
                outputs += self._append(sequence, sampled.token_ids[sequence_id])
        return outputs

    def check(self) -> None:
        """Raise `BlockAccountingError` unless only living sequences hold blocks and slots."""
        self.block_manager.check()
        holders = self._running.keys() | self._ended.keys()
        if self.block_manager.owners != holders:
            raise BlockAccountingError(
                f"sequences {sorted(self.block_manager.owners ^ holders)} hold blocks without"
                " running, or run without blocks"
            )
        if len(self._free_slots) + len(holders) != self._max_num_seqs:
            raise BlockAccountingError(
                f"{self._max_num_seqs} slots, {len(holders)} held, {len(self._free_slots)} free"
            )

    def _admit(self) -> list[Sequence]:
        """Let waiting sequences in, in order, while slots, blocks and the step's budget allow."""
        admitted: list[Sequence] = []
        budget = self._max_num_batched_tokens
        while self._waiting and self._free_slots:
            sequence = next(iter(self._waiting.values()))
            num_tokens = len(sequence.prompt_token_ids)
            # A prompt above the whole budget must run some time: as its step's only prompt.
            if admitted and num_tokens > budget:
                break
            if not self.block_manager.can_allocate(sequence.max_num_tokens):
                break
            del self._waiting[sequence.sequence_id]
            self._start(sequence)
            admitted.append(sequence)
            budget -= num_tokens
        return admitted

    def _start(self, sequence: Sequence) -> None:
        self.block_manager.allocate(sequence.sequence_id, sequence.max_num_tokens)
        sequence.slot = self._free_slots.pop()
        sequence.state = SequenceState.RUNNING
        self._running[sequence.sequence_id] = sequence

    def _schedule_prefill(self, sequence: Sequence) -> ScheduledPrefill:
        sequence.num_computed_tokens = len(sequence.prompt_token_ids)
        sequence.num_steps_in_flight += 1
        return ScheduledPrefill(
            sequence_id=sequence.sequence_id,
            slot=_slot_of(sequence),
            token_ids=sequence.prompt_token_ids,
            block_table=self.block_manager.block_table(sequence.sequence_id),
            params=sequence.params,
            seed=sequence.seed,
        )

    def _schedule_decode(self, sequence: Sequence) -> ScheduledDecode:
        position = sequence.num_computed_tokens
        sequence.num_computed_tokens += 1
        sequence.num_steps_in_flight += 1
        return ScheduledDecode(
            sequence_id=sequence.sequence_id,
            slot=_slot_of(sequence),
            position=position,
            block_table=self.block_manager.block_table(sequence.sequence_id),
            params=sequence.params,
            seed=sequence.seed,
        )

    def _append(self, sequence: Sequence, token_ids: tuple[int, ...]) -> list[StepOutput]:
        """Add tokens up to the one that ends the sequence."""
        outputs: list[StepOutput] = []
        for token_id in token_ids:
            sequence.output_token_ids.append(token_id)
            reason = _finish_reason(sequence)
            outputs.append(
                TokenOutput(sequence.sequence_id, token_id, logprob=None, finish_reason=reason)
            )
            if reason is not None:
                self._end(sequence)
                break
        return outputs

    def _fail(self, sequence: Sequence) -> SequenceFailure:
        self._end(sequence)
        error = NonFiniteLogitsError(
            f"the model gave NaN or Inf after {len(sequence.prompt_token_ids)} prompt tokens and"
            f" {len(sequence.output_token_ids)} generated ones; the checkpoint or its kernel is at"
            " fault"
        )
        return SequenceFailure(sequence.sequence_id, error)

    def _end(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.ENDED
        self._ended[sequence.sequence_id] = self._running.pop(sequence.sequence_id)
        self._release_if_idle(sequence)

    def _release_if_idle(self, sequence: Sequence) -> None:
        """Take blocks and slot back, unless a launched step still writes to them."""
        if sequence.num_steps_in_flight:
            return
        del self._ended[sequence.sequence_id]
        self.block_manager.free(sequence.sequence_id)
        self._free_slots.append(_slot_of(sequence))
        sequence.slot = None


def _slot_of(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise BlockAccountingError(f"sequence {sequence.sequence_id} runs without a slot")
    return sequence.slot


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    if sequence.output_token_ids[-1] in sequence.params.stop_token_ids:
        return FinishReason.STOP
    if len(sequence.output_token_ids) >= sequence.max_output_tokens:
        return FinishReason.LENGTH
    return None
