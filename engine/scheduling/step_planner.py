"""Plans a step: which sequences take part in it, and with how many of their tokens.

Either everybody who decodes goes one token further (with a draft, where there is one) and short
prompts join them, or prompts of many tokens run by themselves, every second step. Prompts are cut
where `pieces` says. Whose turn it is to hold a slot is `residency`'s to decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.scheduling.batch import Decodes, RowExtras, ScheduledBatch, ScheduledChunk
from engine.scheduling.mask_reader import MaskReader
from engine.scheduling.pieces import chunk_stop
from engine.scheduling.sequence import slot_of, turn_of

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.scheduling.admission import Admission
    from engine.scheduling.block_manager import BlockManager
    from engine.scheduling.counters import Counters
    from engine.scheduling.mask_reader import PendingMasks
    from engine.scheduling.prefix_sharing import PrefixSharing
    from engine.scheduling.residency import Residency
    from engine.scheduling.sequence import Sequence

# From so many prompt tokens on, prompts run by themselves, every second step: rows beyond some 50
# turn a step from reading weights to arithmetic, so decoding beside them would not be for nothing.
EXCLUSIVE_PREFILL_TOKENS = 256
# Rows of one step that verify drafts: beyond them verifying costs more than it saves.
MAX_DRAFT_ROWS = 48
# Tokens that a grammar leaves no choice about, verified together where drafts are not set.
MAX_FORCED_TOKENS = 8
# Logits of a prompt take memory by the row: 25 MB for these at 49 152 tokens of vocabulary.
MAX_PROMPT_LOGPROB_ROWS = 128


class StepPlanner:
    """Chooses what the next step runs."""

    def __init__(
        self,
        config: EngineConfig,
        residency: Residency,
        blocks: BlockManager,
        prefixes: PrefixSharing,
        admission: Admission,
        counters: Counters,
    ) -> None:
        self._config = config
        self._residency = residency
        self._blocks = blocks
        self._prefixes = prefixes
        self._admission = admission
        self._counters = counters
        self._masks = MaskReader()
        self._were_prompts_last = False
        # Of one step; lower for a while after a lack of memory.
        self._token_limit = config.max_num_batched_tokens

    def plan(self) -> ScheduledBatch | None:
        """Choose what the next step runs; None when there is nothing to run now."""
        self._residency.rebalance()
        decodes, drafts, prefills = Decodes(), list[ScheduledChunk](), list[ScheduledChunk]()
        if self._is_turn_of_prompts():
            prefills = self._plan_prefills(self._token_limit)
        self._were_prompts_last = bool(prefills)
        if not prefills:
            decodes, drafts = self._plan_decodes()
            num_rows = len(decodes) + sum(len(draft.token_ids) for draft in drafts)
            prefills = self._plan_prefills(self._token_limit - num_rows)
        starts, new_blocks = self._residency.take_changes()
        if not (decodes or drafts or prefills):
            return None
        chunks = (*drafts, *prefills)
        return ScheduledBatch(decodes, chunks, starts, new_blocks, self._blocks.take_dirty())

    def raise_token_limit(self) -> None:
        """Allow larger steps again, up to the setting: the last one had memory enough."""
        self._token_limit = min(2 * self._token_limit, self._config.max_num_batched_tokens)

    def lower_token_limit(self, num_tokens: int) -> None:
        """Allow smaller steps only, after one of so many tokens ran out of memory."""
        self._token_limit = max(1, min(self._token_limit, num_tokens) // 2)

    def _is_turn_of_prompts(self) -> bool:
        """Whether prompts run by themselves now: many tokens wait, and it is not always them."""
        if self._were_prompts_last:
            return False
        residency, admission = self._residency, self._admission
        waiting = sum(
            sequence.num_known_tokens - sequence.num_computed_tokens
            for sequence in residency.running.values()
            if not sequence.is_decoding
        )
        if residency.free_slots and not residency.is_head_blocked and admission.num_seqs:
            # Only those that would find a slot, as if all were of one length: a long queue must not
            # make every freed slot stop the others' answers for a short prompt.
            share = min(1.0, len(residency.free_slots) / admission.num_seqs)
            waiting += int(share * admission.num_tokens)
        return waiting >= min(EXCLUSIVE_PREFILL_TOKENS, self._config.max_num_batched_tokens)

    # Decodes

    def _plan_decodes(self) -> tuple[Decodes, list[ScheduledChunk]]:
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        drafts: list[ScheduledChunk] = []
        block_size, tables = self._blocks.block_size, self._blocks.block_table
        grow, token_limit = self._residency.grow, self._token_limit
        num_rows = 0
        for sequence in self._in_turn():
            if not sequence.is_decoding or num_rows >= token_limit:
                continue  # reads its prompt yet, was preempted for those before, or has no room
            launched = len(sequence.output_token_ids) + sequence.num_samples_in_flight
            if launched >= sequence.max_output_tokens:
                continue
            if sequence.is_watched and sequence.needs_last_token:
                if not sequence.num_steps_in_flight and grow(sequence, 1):
                    room = min(MAX_DRAFT_ROWS, token_limit) - num_rows - 1
                    drafts.append(self._plan_draft(sequence, room))
                    num_rows += len(drafts[-1].token_ids)
                continue
            position, sequence_id = sequence.num_computed_tokens, sequence.sequence_id
            if position >= len(tables(sequence_id)) * block_size and not grow(sequence, 1):
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
        running = list(self._residency.running.values())
        if self._blocks.num_free_blocks < len(running):
            running.sort(key=turn_of)
        self._residency.is_short_of_blocks = False
        return running

    def _plan_draft(self, sequence: Sequence, room: int) -> ScheduledChunk:
        """Run the last token, with a draft behind it where there is one."""
        start = sequence.num_computed_tokens
        tokens = sequence.known_token_ids(start, sequence.num_known_tokens)
        draft = self._draft(sequence, room)
        extras: tuple[RowExtras, ...] = ()
        if draft or sequence.params.bad_words:
            extras = _row_extras(sequence, draft)
        num_samples = 1 + len(draft)
        sequence.num_computed_tokens += len(tokens) + len(draft)  # until it is known what held
        sequence.num_steps_in_flight += 1
        sequence.num_samples_in_flight += 1
        self._counters.num_drafted_tokens += len(draft)
        _charge(sequence)
        return ScheduledChunk(
            sequence.sequence_id,
            slot_of(sequence),
            start,
            (*tokens, *draft),
            num_samples,
            extras,
            is_decode=True,
            masks=self._begin_masks(sequence, draft),
        )

    def _begin_masks(self, sequence: Sequence, draft: tuple[int, ...]) -> PendingMasks | None:
        if sequence.constraint is None:
            return None
        return self._masks.begin(sequence.constraint, draft)

    def _draft(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        """Guess tokens, no more than there is room for without taking anybody's blocks."""
        left = sequence.max_output_tokens - len(sequence.output_token_ids) - 1
        draft = self._guess(sequence, max(0, min(room, left)))
        if not draft:
            return ()
        blocks = self._blocks
        num_held = len(blocks.block_table(sequence.sequence_id))
        num_tokens = sequence.num_computed_tokens + 1 + len(draft)
        missing = blocks.num_blocks_for(num_tokens) - num_held
        if missing > 0 and blocks.num_free_blocks - missing < len(self._residency.running):
            return draft[: num_held * blocks.block_size - sequence.num_computed_tokens - 1]
        self._residency.grow(sequence, 1 + len(draft))
        return draft

    def _guess(self, sequence: Sequence, limit: int) -> tuple[int, ...]:
        """Return what is likely to follow: what a grammar demands, else what was said before."""
        num_drafts = self._config.num_speculative_tokens
        sequence.is_draft_forced = False
        constraint, drafter = sequence.constraint, sequence.drafter
        if constraint is not None and limit:
            forced = constraint.forced(min(limit, max(num_drafts, MAX_FORCED_TOKENS)))
            if forced:
                sequence.is_draft_forced = True
                return tuple(forced)
        if drafter is None:
            return ()
        draft = drafter.propose(min(num_drafts, limit))
        return draft if constraint is None else draft[: constraint.num_allowed(draft)]

    # Prompts

    def _plan_prefills(self, budget: int) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        for sequence in self._residency.running.values():
            if budget < 1:
                break
            if sequence.is_decoding:
                continue
            budget -= self._add_prefill(chunks, sequence, budget)
        # One by one, so that whoever begins like the one before it finds that one's blocks. Nobody
        # is let in of whom nothing may fit: he would hold a slot, have looked for blocks too early,
        # and not be charged.
        size = self._blocks.block_size
        while budget >= (size if chunks else 1):
            admitted = self._residency.admit()
            if admitted is None:
                break
            budget -= self._add_prefill(chunks, admitted, budget)
        return chunks

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
            extras=_row_extras(sequence, ()) if is_last and sequence.is_watched else (),
            masks=self._begin_masks(sequence, ()) if is_last else None,
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
        _charge(sequence)
        self._prefixes.register(sequence)
        return chunk


def _charge(sequence: Sequence) -> None:
    """Move the caller's clock for what it is served for the first time."""
    served = sequence.num_computed_tokens - sequence.num_charged_tokens
    if served > 0:
        sequence.num_charged_tokens += served
        sequence.caller.charge(served)


def _row_extras(sequence: Sequence, draft: tuple[int, ...]) -> tuple[RowExtras, ...]:
    """Say for each row that is sampled what only the host knows."""
    words = sequence.params.bad_words
    longest = max(map(len, words), default=1) - 1
    tail = tuple(sequence.output_token_ids[-longest:]) if longest else ()
    return tuple(
        RowExtras(draft[:count], _banned_after((*tail, *draft[:count]), words))
        for count in range(len(draft) + 1)
    )


def _banned_after(tail: tuple[int, ...], words: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Return the tokens that would complete a bad word after these."""
    last = tail[-1] if tail else None
    # The last token is compared first: that rules nearly all out, at 0.04 instead of 0.3 µs a word.
    return tuple(
        word[-1]
        for word in words
        if len(word) == 1 or (word[-2] == last and tail[1 - len(word) :] == word[:-1])
    )
