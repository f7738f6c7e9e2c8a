"""Plans which prompts a step reads, and how far: whole ones where they fit, else pieces.

Prompts of many tokens run by themselves, every second step; those of the background do so only
while nothing else is there. Prompts are cut where `pieces` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.scheduling.batch import ScheduledChunk
from engine.scheduling.pieces import chunk_stop
from engine.scheduling.rows import charge, row_extras
from engine.scheduling.sequence import slot_of

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.scheduling.background import Background
    from engine.scheduling.block_manager import BlockManager
    from engine.scheduling.mask_reader import MaskReader
    from engine.scheduling.prefix_sharing import PrefixSharing
    from engine.scheduling.queues import Queues
    from engine.scheduling.residency import Residency
    from engine.scheduling.sequence import Sequence

# From so many prompt tokens on, prompts run by themselves, every second step: rows beyond some 50
# turn a step from reading weights to arithmetic, so decoding beside them would not be for nothing.
EXCLUSIVE_PREFILL_TOKENS = 256
# Logits of a prompt take memory by the row: 25 MB for these at 49 152 tokens of vocabulary.
MAX_PROMPT_LOGPROB_ROWS = 128


class PromptPlanner:
    """Reads prompts, those of the foreground first."""

    def __init__(
        self,
        config: EngineConfig,
        residency: Residency,
        blocks: BlockManager,
        prefixes: PrefixSharing,
        queue: Queues,
        background: Background,
        masks: MaskReader,
    ) -> None:
        self._config = config
        self._residency = residency
        self._blocks = blocks
        self._prefixes = prefixes
        self._queue = queue
        self._background = background
        self._masks = masks

    def have_much_to_read(self) -> bool:
        """Whether so many tokens of prompts wait that these run by themselves."""
        residency, is_alone = self._residency, self._background.is_alone
        admission = self._queue.background_admission if is_alone else self._queue.admission
        waiting = sum(
            sequence.num_known_tokens - sequence.num_computed_tokens
            for sequence in residency.running.values()
            if not sequence.is_decoding and sequence.is_background == is_alone
        )
        if residency.free_slots and not residency.is_head_blocked and admission.num_seqs:
            # Only those that would find a slot, as if all were of one length: a long queue must not
            # make every freed slot stop the others' answers for a short prompt.
            share = min(1.0, len(residency.free_slots) / admission.num_seqs)
            waiting += int(share * admission.num_tokens)
        return waiting >= min(EXCLUSIVE_PREFILL_TOKENS, self._config.max_num_batched_tokens)

    def plan(self, budget: int, *, with_background: bool) -> list[ScheduledChunk]:
        """Read prompts: of others first, and of the background by a budget of its own."""
        chunks: list[ScheduledChunk] = []
        budget -= self._add_prefills(chunks, budget, is_background=False)
        if with_background:
            budget = self._background.prefill_budget(budget)
            self._add_prefills(chunks, budget, is_background=True)
        return chunks

    def _add_prefills(
        self, chunks: list[ScheduledChunk], budget: int, *, is_background: bool
    ) -> int:
        """Add chunks of the prompts of one class; return how many tokens they have."""
        full_budget = budget
        for sequence in self._residency.running.values():
            if budget < 1:
                break
            if sequence.is_decoding or sequence.is_background != is_background:
                continue
            budget -= self._add_prefill(chunks, sequence, budget)
        # One by one, so that whoever begins like the one before it finds that one's blocks. Nobody
        # is let in of whom nothing may fit: he would hold a slot, have looked for blocks too early,
        # and not be charged.
        size = self._blocks.block_size
        while budget >= (size if chunks else 1):
            admitted = self._residency.admit(is_background=is_background)
            if admitted is None:
                break
            budget -= self._add_prefill(chunks, admitted, budget)
        return full_budget - budget

    def _add_prefill(self, chunks: list[ScheduledChunk], sequence: Sequence, budget: int) -> int:
        """Add a chunk of a prompt, where one fits; return how many tokens it has."""
        stop = self._prefill_stop(sequence, budget)
        start = sequence.num_computed_tokens
        if stop == start and not chunks:
            # Not even a piece fits beside those who decode. It goes on all the same, and what it
            # leaves in the cache is its own from here on.
            stop = start + budget
            sequence.is_shared = False
        if stop > start:
            chunks.append(self._plan_prefill(sequence, stop))
        return stop - start

    def _prefill_stop(self, sequence: Sequence, budget: int) -> int:
        """Say how far a prompt can be read."""
        size = self._blocks.block_size
        start, end = sequence.num_computed_tokens, sequence.num_known_tokens
        if sequence.params.prompt_logprobs is not None:
            budget = min(budget, max(MAX_PROMPT_LOGPROB_ROWS, size))
        return chunk_stop(start, end, budget, size)

    def _plan_prefill(self, sequence: Sequence, stop: int) -> ScheduledChunk:
        """Run known tokens: of the prompt, or of an answer that had been interrupted."""
        asks_for_logprobs = sequence.params.prompt_logprobs is not None
        start, end = sequence.num_computed_tokens, sequence.num_known_tokens
        is_last = stop == end
        chunk = ScheduledChunk(
            sequence.sequence_id,
            slot_of(sequence),
            start,
            sequence.known_token_ids(start, stop),
            num_samples=1 if is_last else 0,
            extras=row_extras(sequence, ()) if is_last and sequence.is_watched else (),
            masks=self._masks.begin_for(sequence, ()) if is_last else None,
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
        charge(sequence)
        self._prefixes.register(sequence)
        return chunk
