"""The two hand-overs between scheduler and runner: what to run, and what was sampled.

Plain numbers, frozen: a batch stays as it was launched, whatever becomes of its sequences
meanwhile. What belongs to a slot (block table, settings, last token) stays with the runner from
step to step; a batch says only what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.constraint import TokenMask
    from engine.outputs import TokenLogprobs
    from engine.sampling_params import SamplingParams
    from engine.scheduling.mask_reader import PendingMasks


@dataclass(frozen=True, slots=True)
class SlotStart:
    """A sequence takes a slot, with all that is known of it so far."""

    sequence_id: int
    slot: int
    params: SamplingParams
    seed: int
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]  # not empty for one that was preempted or paused before
    block_table: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A slot's block table grows by one block."""

    slot: int
    index: int  # in the slot's table
    block: int


@dataclass(frozen=True, slots=True)
class Decodes:
    """Sequences that go one token further, in columns.

    The input of each is whatever the step before sampled into its slot, so nobody need have read
    it.
    """

    sequence_ids: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()  # of the input tokens, from 0; as many are cached before each

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.sequence_ids)


@dataclass(frozen=True, slots=True)
class RowExtras:
    """What sampling one row needs beyond its slot's settings; known to the host only."""

    # Drafts before this row in the same step: they count as generated, as far as this row goes.
    draft_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()  # would complete a bad word
    mask: TokenMask | None = None  # the tokens that a constraint allows; None allows all


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Known tokens of one sequence: a stretch of its prompt, or its last token and a draft.

    A chunk that ends where the sequence's known tokens end is sampled from: after its last token,
    or, where it carries a draft, after every one.
    """

    sequence_id: int
    slot: int
    start: int  # position of the first token; as many are cached before it
    token_ids: tuple[int, ...]  # at least one
    num_samples: int  # how many of its last tokens are sampled after: 0, 1 or all
    extras: tuple[RowExtras, ...] = ()  # for each sample, or none at all; without their masks
    # Prompt tokens whose logprobs are asked for: one for each token of the chunk, the one that
    # follows it; shorter by one where the prompt ends with the chunk.
    prompt_targets: tuple[int, ...] | None = None
    is_decode: bool = False  # its last token, with a draft behind it or without
    masks: PendingMasks | None = None  # for each sample, where a constraint is followed

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)

    @property
    def num_drafts(self) -> int:
        """How many of its tokens are a draft to verify."""
        return max(0, self.num_samples - 1)

    @property
    def drafts(self) -> tuple[int, ...]:
        """Return the draft: its last tokens."""
        return self.token_ids[len(self.token_ids) - self.num_drafts :]


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """What one step runs; at least one sequence, and no sequence twice."""

    decodes: Decodes
    chunks: tuple[ScheduledChunk, ...]
    starts: tuple[SlotStart, ...] = ()  # taken in before anything else
    new_blocks: tuple[NewBlock, ...] = ()
    dirty_blocks: tuple[int, ...] = ()  # may hold NaN; zeroed before anything is written

    @property
    def num_tokens(self) -> int:
        """How many tokens the step computes."""
        return len(self.decodes) + sum(len(chunk.token_ids) for chunk in self.chunks)

    @property
    def sequence_ids(self) -> tuple[int, ...]:
        """Every sequence of the batch, in the order of its rows."""
        return (*self.decodes.sequence_ids, *(chunk.sequence_id for chunk in self.chunks))


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one step sampled."""

    # By sequence id, in order: one token, or a draft's accepted ones and the one after them; fewer
    # where none was left to pick. Absent where nothing was sampled or sampling failed.
    token_ids: Mapping[int, tuple[int, ...]]
    failed: frozenset[int] = frozenset()  # sequence ids whose logits held NaN or Inf
    # Those for which no token was left to pick: after what they have in `token_ids`, if anything.
    no_candidates: frozenset[int] = frozenset()
    logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)


def extras_of(chunk: ScheduledChunk) -> Sequence[RowExtras]:
    """Return what each sample of a chunk needs, its mask included; waits for masks."""
    if chunk.masks is None:
        return chunk.extras
    extras = chunk.extras or (RowExtras(),) * chunk.num_samples
    masks = chunk.masks.result()
    return [replace(extra, mask=mask) for extra, mask in zip(extras, masks, strict=True)]
