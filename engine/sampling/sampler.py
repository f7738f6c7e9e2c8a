"""Picks the next token of every row of a step, in one pass over their logits.

The order: raw logits (logprobs are told of these) → bias, bans and masks → penalties → the most
likely token, or: temperature → top_k → top_p → min_p → typical_p → a random token.

A row's token depends on its own logits, settings, seed and position only, to the bit: there is no
shared generator, what adds up a row adds whole numbers (`token_filters`), and a part of sampling
that a row does not need leaves it as it was. Nothing here waits for the device or makes tensors out
of the host's numbers. With `SamplingState.is_graph_safe` every part is done to all rows, so that a
step can be captured in a CUDA graph; without, to the rows that `row_plan` found to need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from engine.sampling.logprobs import RowLogprobs, row_logprobs
from engine.sampling.state import Need, Setting
from engine.sampling.token_filters import (
    draw,
    keep_leading,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical_p,
    to_shares,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from engine.sampling.row_plan import Masks, SamplingPlan
    from engine.sampling.state import SamplingState

_Filter: TypeAlias = "tuple[Need, tuple[Setting, ...], Callable[..., Tensor]]"
_REST: tuple[_Filter, ...] = (
    (Need.MIN_P, (Setting.MIN_P,), keep_min_p),
    (Need.TYPICAL_P, (Setting.TYPICAL_P,), keep_typical_p),
)
_FILTERS: tuple[_Filter, ...] = (
    (Need.LEADING, (Setting.TOP_K, Setting.TOP_P), keep_leading),
    *_REST,
)
_GRAPH_SAFE_FILTERS: tuple[_Filter, ...] = (
    (Need.TOP_K, (Setting.TOP_K,), keep_top_k),
    (Need.TOP_P, (Setting.TOP_P,), keep_top_p),
    *_REST,
)


@dataclass(frozen=True, slots=True)
class SampledRows:
    """What a step sampled, still on the device; in the order of the plan's rows."""

    tokens: Tensor  # [rows] int64, in range whatever the logits were
    is_finite: Tensor  # [rows] bool: whether the model's logits held neither NaN nor Inf
    has_choice: (
        Tensor  # [rows] bool: whether any token was left to pick; says nothing if not finite
    )
    logprobs: RowLogprobs | None  # of all rows (0 where not asked for); None if no row asked


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a step, with what their slots say."""

    slots: Tensor  # [rows] int64
    positions: Tensor  # [rows] int64
    settings: Tensor  # [rows, settings] float64

    def select(self, rows: Tensor) -> _Rows:
        return _Rows(
            self.slots.index_select(0, rows),
            self.positions.index_select(0, rows),
            self.settings.index_select(0, rows),
        )

    def column(self, setting: Setting) -> Tensor:
        """Return one setting of every row: [rows, 1] float64."""
        return self.settings[:, setting : setting + 1]


def sample(logits: Tensor, plan: SamplingPlan, state: SamplingState) -> SampledRows:
    """Pick one token a row.

    logits: [rows, vocab] float32, contiguous; overwritten where settings change them.
    """
    finite = is_finite(logits)
    untouched = _untouched(logits, plan)
    tokens = _pick(logits, plan, state)
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return SampledRows(
        tokens=tokens,
        is_finite=finite,
        has_choice=chosen > float("-inf"),
        logprobs=None if untouched is None else _logprobs(untouched, tokens, plan, state),
    )


def is_finite(logits: Tensor) -> Tensor:
    """Whether a row holds neither NaN nor Inf: [rows] bool from [rows, vocab]."""
    # A sum is finite only if all its terms are: 6 µs a row of 49 152, `isfinite().all()` takes 59.
    return logits.sum(dim=-1).isfinite()


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """Give each (seed, position) its random number in [0, 1).

    seeds, positions: [n] int64. Returns [n] float64, a multiple of 2^-53. A counter-based stream:
    the mixing function of SplitMix64 (Steele, Lea, Flood 2014), over the mixed seed plus a Weyl
    step for every position.
    """
    mixed = _mix(_mix(seeds) + positions * _WEYL)
    return _shift_right(mixed, 11).to(torch.float64) * 2.0**-53


def _pick(logits: Tensor, plan: SamplingPlan, state: SamplingState) -> Tensor:
    needs = plan.key.needs
    if not (needs or plan.has_extras):
        return logits.argmax(dim=-1)
    rows = _Rows(plan.slots, plan.positions, state.settings.index_select(0, plan.slots))
    _change(logits, rows, plan, state)
    if not needs & Need.SAMPLE:
        return logits.argmax(dim=-1)
    drawing = plan.rows.get(Need.SAMPLE)
    if drawing is not None:
        drawn = _draw(logits.index_select(0, drawing), rows.select(drawing), plan, state)
        return logits.argmax(dim=-1).index_copy_(0, drawing, drawn)
    drawn = _draw(logits, rows, plan, state)
    if not state.is_graph_safe:  # every row draws
        return drawn
    is_greedy = rows.column(Setting.TEMPERATURE).squeeze(1) == 0
    return torch.where(is_greedy, logits.argmax(dim=-1), drawn)


def _draw(logits: Tensor, rows: _Rows, plan: SamplingPlan, state: SamplingState) -> Tensor:
    """Pick a random token of each row."""
    shares = to_shares(logits, rows.column(Setting.TEMPERATURE))
    for need, settings, keep in _GRAPH_SAFE_FILTERS if state.is_graph_safe else _FILTERS:
        if not plan.key.needs & need:
            continue
        chosen = plan.rows.get(need)
        if chosen is None:
            shares = keep(shares, *map(rows.column, settings))
        else:
            columns = map(rows.select(chosen).column, settings)
            shares.index_copy_(0, chosen, keep(shares.index_select(0, chosen), *columns))
    numbers = uniform(state.seeds.index_select(0, rows.slots), rows.positions)
    return draw(shares, numbers.unsqueeze(1))


def _change(logits: Tensor, rows: _Rows, plan: SamplingPlan, state: SamplingState) -> None:
    """Change logits in place: bias and bans first, then penalties."""
    changes: tuple[tuple[Need, Callable[[Tensor, _Rows, SamplingState], None]], ...] = (
        (Need.LOGIT_OFFSETS, _add_logit_offsets),
        (Need.MIN_TOKENS, _ban_ends),
        (Need.PENALTIES, partial(_penalise, plan=plan)),
    )
    for need, change in changes:
        if not plan.key.needs & need:
            continue
        chosen = plan.rows.get(need)
        if chosen is None:
            change(logits, rows, state)
        else:
            part = logits.index_select(0, chosen)
            change(part, rows.select(chosen), state)
            logits.index_copy_(0, chosen, part)
    # Penalties leave -Inf as it is, so these bans may as well come last.
    if plan.masks is not None:
        _apply_masks(logits, plan.masks, state.bit_places)
    if plan.bans is not None:
        logits.view(-1).index_fill_(0, plan.bans, float("-inf"))


def _add_logit_offsets(logits: Tensor, rows: _Rows, state: SamplingState) -> None:
    logits.add_(_table(state.logit_offsets, rows))


def _ban_ends(logits: Tensor, rows: _Rows, state: SamplingState) -> None:
    is_early = rows.positions.unsqueeze(1) < rows.column(Setting.MIN_POSITION)
    logits.masked_fill_(_table(state.is_end, rows) & is_early, float("-inf"))


def _penalise(logits: Tensor, rows: _Rows, state: SamplingState, plan: SamplingPlan) -> None:
    counts = _table(state.counts, rows)
    if plan.drafts is not None:
        ones = torch.ones_like(plan.drafts, dtype=torch.int32)
        counts.view(-1).index_add_(0, plan.drafts, ones)
    is_generated = counts > 0
    if plan.key.needs & Need.REPETITION:
        penalty = rows.column(Setting.REPETITION).float()
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
        is_repeated = is_generated | _table(state.is_in_prompt, rows)
        logits.copy_(torch.where(is_repeated, lowered, logits))
    logits.sub_(counts * rows.column(Setting.FREQUENCY).float())
    logits.sub_(is_generated * rows.column(Setting.PRESENCE).float())


def _apply_masks(logits: Tensor, masks: Masks, bit_places: Tensor) -> None:
    bits = (masks.words.unsqueeze(-1) >> bit_places) & 1
    is_banned = bits.flatten(1)[:, : logits.shape[1]] == 0
    masked = logits.index_select(0, masks.rows).masked_fill_(is_banned, float("-inf"))
    logits.index_copy_(0, masks.rows, masked)


def _table(table: Tensor | None, rows: _Rows) -> Tensor:
    """Read the rows' slots in one of the state's tables."""
    if table is None:
        raise RuntimeError("the plan needs a table that `SamplingState.reserve` has not made")
    return table.index_select(0, rows.slots)


def _untouched(logits: Tensor, plan: SamplingPlan) -> Tensor | None:
    """Keep the logits whose logprobs are asked for from being overwritten."""
    if plan.key.num_top is None:
        return None
    if plan.logprob_rows is not None:
        return logits.index_select(0, plan.logprob_rows)
    return logits.clone() if plan.changes_logits else logits


def _logprobs(
    untouched: Tensor, tokens: Tensor, plan: SamplingPlan, state: SamplingState
) -> RowLogprobs:
    num_top, rows = plan.key.num_top or 0, plan.logprob_rows
    if rows is None:
        return row_logprobs(untouched, tokens, num_top, state.token_ids)
    logprobs = row_logprobs(untouched, tokens.index_select(0, rows), num_top, state.token_ids)
    return RowLogprobs(
        *(
            part.new_zeros(len(tokens), *part.shape[1:]).index_copy_(0, rows, part)
            for part in (logprobs.picked, logprobs.top_ids, logprobs.top)
        )
    )


def _signed(value: int) -> int:
    """Read a 64-bit pattern as the int64 that it is in a tensor."""
    return value - 2**64 if value >= 2**63 else value


_WEYL = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIERS[0]
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIERS[1]
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """Shift in zeros, where int64's own shift repeats the sign."""
    return (bits >> places).bitwise_and(2 ** (64 - places) - 1)
