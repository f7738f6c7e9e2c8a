"""Puts together what one step's rows need of the sampler; runs on the host.

A row is a place to sample: a sequence that goes one token further, or one token of a draft to
verify. Where a step may be captured in a CUDA graph, everything that its rows need is done to all
of them (those that don't need it are neutral); elsewhere each part is done to the rows that asked.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.sampling.state import Need

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from engine.constraint import TokenMask
    from engine.sampling.state import SamplingState
    from engine.scheduling.batch import RowExtras

_SAMPLING = (Need.LEADING, Need.MIN_P, Need.TYPICAL_P)
_CHANGING = (Need.LOGIT_OFFSETS, Need.MIN_TOKENS, Need.PENALTIES)


@dataclass(frozen=True, slots=True)
class PlanKey:
    """What the host decides about a step: which operations run, and so which graph would do."""

    needs: Need
    num_top: int | None  # leading tokens whose logprobs are told; None tells no logprobs

    def covers(self, other: PlanKey) -> bool:
        """Whether a graph of this key samples the same tokens as one of the other."""
        if other.num_top is not None and (self.num_top is None or self.num_top < other.num_top):
            return False
        return not other.needs & ~self.needs


@dataclass(frozen=True, slots=True)
class Masks:
    """The tokens that constraints allow."""

    rows: Tensor  # [num_masks] int64: rows that have one
    words: Tensor  # [num_masks, vocab / 32 rounded up] int32, see `TokenMask`


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How one step's rows are sampled; the tensors are on the device."""

    key: PlanKey
    slots: Tensor  # [rows] int64
    positions: Tensor  # [rows] int64: of the token that is sampled, from 0
    # Which rows need what (for the parts of drawing: which of the drawn rows), [n] int64. A need of
    # the key that has no entry is done to every row.
    rows: Mapping[Need, Tensor] = field(default_factory=dict)
    logprob_rows: Tensor | None = None  # the same for logprobs
    masks: Masks | None = None
    bans: Tensor | None = None  # [n] int64, row * vocab + token id: never picked in this row
    # [n] int64, row * vocab + token id: generated before this row within the step. The row is
    # counted among those that have penalties.
    drafts: Tensor | None = None

    @property
    def has_extras(self) -> bool:
        """Whether it holds more than the slots tell, so that a captured graph won't do."""
        return not (self.masks is None and self.bans is None and self.drafts is None)

    @property
    def changes_logits(self) -> bool:
        """Whether any logit is changed before a token is picked."""
        return self.has_extras or bool(self.key.needs & functools.reduce(operator.or_, _CHANGING))


def plan_key(state: SamplingState, slots: Sequence[int], positions: Sequence[int]) -> PlanKey:
    """Decide what a step of these rows takes, from what the host knows."""
    return _key(state, slots, _needs(state, slots, positions))


def make_plan(
    state: SamplingState,
    slots: Sequence[int],
    positions: Sequence[int],
    extras: Mapping[int, RowExtras] | None = None,
) -> SamplingPlan:
    """Plan a step.

    slots: of each row; rows of a draft repeat theirs. positions: of the token that each row
    samples, counted from the prompt's first. extras: by row, of those that have any.
    """
    needs = _needs(state, slots, positions)
    key = _key(state, slots, needs)
    subsets = {} if state.is_graph_safe else _subsets(needs)
    penalised = subsets.get(Need.PENALTIES, range(len(slots)))
    extras = extras or {}
    return SamplingPlan(
        key=key,
        slots=state.send_ids(slots),
        positions=state.send_ids(positions),
        rows={need: state.send_ids(rows) for need, rows in subsets.items()},
        logprob_rows=None if state.is_graph_safe else _logprob_rows(state, slots),
        masks=_masks(state, extras),
        bans=_places(state, {row: extra.banned_token_ids for row, extra in extras.items()}),
        drafts=_drafts(state, penalised, extras) if key.needs & Need.PENALTIES else None,
    )


def _needs(state: SamplingState, slots: Sequence[int], positions: Sequence[int]) -> list[Need]:
    return list(map(state.row_needs, slots, positions))


def _key(state: SamplingState, slots: Sequence[int], needs: Sequence[Need]) -> PlanKey:
    asked = [num for num in map(state.num_logprobs, slots) if num is not None]
    return PlanKey(functools.reduce(operator.or_, set(needs), Need(0)), max(asked, default=None))


def _subsets(needs: Sequence[Need]) -> dict[Need, list[int]]:
    """Find the rows that have each need, where some have it and some don't."""
    if len(set(needs)) == 1:
        return {}
    drawn = [row_needs for row_needs in needs if row_needs & Need.SAMPLE]
    subsets = {}
    for among, kinds in ((needs, (Need.SAMPLE, *_CHANGING)), (drawn, _SAMPLING)):
        for need in kinds:
            rows = [i for i, row_needs in enumerate(among) if row_needs & need]
            if 0 < len(rows) < len(among):
                subsets[need] = rows
    return subsets


def _logprob_rows(state: SamplingState, slots: Sequence[int]) -> Tensor | None:
    rows = [row for row, slot in enumerate(slots) if state.num_logprobs(slot) is not None]
    return state.send_ids(rows) if 0 < len(rows) < len(slots) else None


def _masks(state: SamplingState, extras: Mapping[int, RowExtras]) -> Masks | None:
    masks = {row: extra.mask for row, extra in extras.items() if extra.mask is not None}
    if not masks:
        return None
    num_bytes = 4 * -(-state.vocab_size // 32)
    words = bytearray(b"".join(_fit(mask, num_bytes) for mask in masks.values()))
    rows = np.frombuffer(words, dtype=np.int32).reshape(len(masks), -1)
    return Masks(state.send_ids(list(masks)), state.send(rows))


def _fit(mask: TokenMask, num_bytes: int) -> bytes:
    """Allow no token that the mask does not know: a model's vocabulary may be padded."""
    return mask[:num_bytes].ljust(num_bytes, b"\0")


def _drafts(
    state: SamplingState, penalised: Sequence[int], extras: Mapping[int, RowExtras]
) -> Tensor | None:
    before = {
        place: extras[row].draft_token_ids for place, row in enumerate(penalised) if row in extras
    }
    return _places(state, before)


def _places(state: SamplingState, tokens: Mapping[int, Sequence[int]]) -> Tensor | None:
    """Number the places of tokens in a table of rows, as it lies in memory."""
    places = [row * state.vocab_size + token for row, ids in tokens.items() for token in ids]
    return state.send_ids(places) if places else None
