"""Plans a step: which sequences take part in it, and with how many of their tokens.

Either everybody who decodes goes one token further (with a draft, where there is one) and short
prompts join them, or prompts of many tokens run by themselves, every second step. Which prompts,
and how far, is `prompt_planner`'s, in which steps the background takes part `background`'s, and
whose turn it is to hold a slot `residency`'s to decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.scheduling.batch import Decodes, RowExtras, ScheduledBatch, ScheduledChunk
from engine.scheduling.rows import charge, row_extras
from engine.scheduling.sequence import slot_of, turn_of

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.scheduling.background import Background
    from engine.scheduling.block_manager import BlockManager
    from engine.scheduling.counters import Counters
    from engine.scheduling.mask_reader import MaskReader
    from engine.scheduling.prompt_planner import PromptPlanner
    from engine.scheduling.residency import Residency
    from engine.scheduling.sequence import Sequence

# Rows of one step that verify drafts: beyond them verifying costs more than it saves.
MAX_DRAFT_ROWS = 48
# Tokens that a grammar leaves no choice about, verified together where drafts are not set.
MAX_FORCED_TOKENS = 8


class StepPlanner:
    """Chooses what the next step runs."""

    def __init__(
        self,
        config: EngineConfig,
        residency: Residency,
        blocks: BlockManager,
        counters: Counters,
        background: Background,
        masks: MaskReader,
        prompts: PromptPlanner,
    ) -> None:
        self._config = config
        self._residency = residency
        self._blocks = blocks
        self._counters = counters
        self._background = background
        self._masks = masks
        self._prompts = prompts
        self._were_prompts_last = False
        self._waits_for_masks = False  # as nobody else is there who would have to
        self._is_mask_missing = False  # somebody's, who was left out for it
        # Of one step; lower for a while after a lack of memory.
        self._token_limit = config.max_num_batched_tokens

    def plan(self) -> ScheduledBatch | None:
        """Choose what the next step runs; None when there is nothing to run now."""
        if not self._background.make_way():
            self._residency.rebalance()
        with_background = self._background.is_due
        rows = self._plan_rows(with_background=with_background)
        if rows is None and not with_background and not self._residency.is_short_of_blocks:
            # Who else is there has nothing to run now, so that nobody waits for these. Whoever
            # lacks blocks gets them once all steps are collected, and would wait for one more.
            with_background = True
            rows = self._plan_rows(with_background=True)
        if rows is None and self._is_mask_missing:
            rows = self._plan_rows(with_background=True, waits_for_masks=True)
        starts, new_blocks = self._residency.take_changes()
        if rows is None:
            return None
        decodes, chunks = rows
        is_of_all = self._background.is_alone or not self._were_prompts_last
        self._background.note_step(has_taken_part=with_background and is_of_all)
        return ScheduledBatch(decodes, chunks, starts, new_blocks, self._blocks.take_dirty())

    def _plan_rows(
        self, *, with_background: bool, waits_for_masks: bool = False
    ) -> tuple[Decodes, tuple[ScheduledChunk, ...]] | None:
        """Choose who takes part; None where nobody can."""
        self._waits_for_masks, self._is_mask_missing = waits_for_masks, False
        prefills: list[ScheduledChunk] = []
        if not self._were_prompts_last and self._prompts.have_much_to_read():
            is_alone = self._background.is_alone
            prefills = self._prompts.plan(self._token_limit, with_background=is_alone)
        self._were_prompts_last = bool(prefills)
        if prefills:
            return Decodes(), tuple(prefills)
        decodes, drafts = self._plan_decodes(with_background=with_background)
        num_rows = len(decodes) + sum(len(draft.token_ids) for draft in drafts)
        prefills = self._prompts.plan(self._token_limit - num_rows, with_background=with_background)
        chunks = (*drafts, *prefills)
        return (decodes, chunks) if decodes or chunks else None

    def raise_token_limit(self) -> None:
        """Allow larger steps again, up to the setting: the last one had memory enough."""
        self._token_limit = min(2 * self._token_limit, self._config.max_num_batched_tokens)

    def lower_token_limit(self, num_tokens: int) -> None:
        """Allow smaller steps only, after one of so many tokens ran out of memory."""
        self._token_limit = max(1, min(self._token_limit, num_tokens) // 2)

    # Decodes

    def _plan_decodes(self, *, with_background: bool) -> tuple[Decodes, list[ScheduledChunk]]:
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
            if sequence.is_background and not with_background:
                continue
            launched = len(sequence.output_token_ids) + sequence.num_samples_in_flight
            if launched >= sequence.max_output_tokens:
                continue
            if sequence.is_watched and sequence.needs_last_token:
                may_run = not sequence.num_steps_in_flight and self._has_masks(sequence)
                if may_run and grow(sequence, 1):
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

    def _has_masks(self, sequence: Sequence) -> bool:
        """Whether nobody in the step would wait long for a sequence's masks."""
        if self._masks.is_ready(sequence) or self._waits_for_masks:
            return True
        self._is_mask_missing = True
        return False

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
        # Nobody else may ask its constraint anything while masks are asked for ahead.
        draft = () if sequence.masks_ahead is not None else self._draft(sequence, room)
        extras: tuple[RowExtras, ...] = ()
        if draft or sequence.params.bad_words:
            extras = row_extras(sequence, draft)
        num_samples = 1 + len(draft)
        sequence.num_computed_tokens += len(tokens) + len(draft)  # until it is known what held
        sequence.num_steps_in_flight += 1
        sequence.num_samples_in_flight += 1
        self._counters.num_drafted_tokens += len(draft)
        charge(sequence)
        return ScheduledChunk(
            sequence.sequence_id,
            slot_of(sequence),
            start,
            (*tokens, *draft),
            num_samples,
            extras,
            is_decode=True,
            masks=self._masks.begin_for(sequence, draft),
        )

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
            most = min(limit, max(num_drafts, MAX_FORCED_TOKENS))
            if forced := self._masks.forced(sequence, constraint, most):
                sequence.is_draft_forced = True
                return tuple(forced)
        if drafter is None:
            return ()
        draft = drafter.propose(min(num_drafts, limit))
        return draft if constraint is None else draft[: constraint.num_allowed(draft)]
