"""Picks the next token of every sequence of a step, in one pass over their logits.

A row's token depends on its own logits, settings, seed and position only, never on the other rows:
there is no shared generator, every reduction runs along one row, and what is kept is decided by a
threshold on the probability rather than by a rank, so that equal probabilities stand or fall
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.batch import ScheduledBatch
    from engine.sampling_params import SamplingParams

# Dividing logits by less could overflow float32; already here a difference of 1e-4 decides.
MIN_TEMPERATURE = 1e-6
# A nucleus is looked for among this share of the vocabulary first. For 1 of 49 152 tokens sorted,
# the 1/96 (512) take 0.12 ms, 1/64 0.13 ms, above that 0.5 ms (torch changes its method), a full
# sort 3.5 ms (two cores, 2026-11).
_NUCLEUS_SHARE = 96


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """How the rows that are not greedy are sampled; `num_sampled` of the batch's rows."""

    rows: Tensor  # [num_sampled] int64: which of the batch's rows these are
    temperature: Tensor  # [num_sampled, 1] float32, at least MIN_TEMPERATURE
    uniform: Tensor  # [num_sampled, 1] float64 in [0, 1): each row's random number
    top_k_rows: Tensor  # [num_top_k] int64, among the sampled rows
    top_k: Tensor  # [num_top_k, 1] int64
    max_top_k: int
    top_k_top_p: Tensor  # [num_top_k, 1] float32: their top_p
    top_p_rows: Tensor  # [num_top_p] int64, among the sampled rows: those without top_k
    top_p: Tensor  # [num_top_p, 1] float32


def build_sampling_input(
    batch: ScheduledBatch, vocab_size: int, device: torch.device
) -> SamplingInput | None:
    """Collect the settings of a batch's rows; None where every row is greedy."""
    entries = batch.entries
    rows = [row for row, entry in enumerate(entries) if not _is_greedy(entry.params)]
    if not rows:
        return None
    positions = [
        *(decode.position + 1 for decode in batch.decodes),
        *(len(prefill.token_ids) for prefill in batch.prefills),
    ]
    params = [entries[row].params for row in rows]
    top_k = {i: p.top_k for i, p in enumerate(params) if p.top_k and p.top_k < vocab_size}
    top_p = {i: p.top_p for i, p in enumerate(params) if p.top_p < 1 and i not in top_k}
    seeds = torch.tensor([entries[row].seed for row in rows], device=device)
    return SamplingInput(
        rows=torch.tensor(rows, device=device),
        temperature=_column([max(p.temperature, MIN_TEMPERATURE) for p in params], device),
        uniform=uniform(
            seeds, torch.tensor([positions[row] for row in rows], device=device)
        ).unsqueeze(1),
        top_k_rows=torch.tensor(list(top_k), dtype=torch.int64, device=device),
        top_k=torch.tensor(list(top_k.values()), dtype=torch.int64, device=device).unsqueeze(1),
        max_top_k=max(top_k.values(), default=0),
        top_k_top_p=_column([params[i].top_p for i in top_k], device),
        top_p_rows=torch.tensor(list(top_p), dtype=torch.int64, device=device),
        top_p=_column(list(top_p.values()), device),
    )


def sample(logits: Tensor, settings: SamplingInput | None) -> Tensor:
    """Pick one token a row.

    logits: [num_seqs, vocab] float32. Returns [num_seqs] int64, in range even where logits are NaN.
    """
    tokens = logits.argmax(dim=-1)
    if settings is not None:
        picked = _draw(logits.index_select(0, settings.rows), settings)
        tokens.index_copy_(0, settings.rows, picked)
    return tokens


def is_finite(logits: Tensor) -> Tensor:
    """Whether a row holds neither NaN nor Inf: [num_seqs] bool from [num_seqs, vocab]."""
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


def _draw(logits: Tensor, settings: SamplingInput) -> Tensor:
    """Pick by inverting the cumulative distribution, in the order of token ids."""
    probs = torch.softmax(logits / settings.temperature, dim=-1)
    if settings.max_top_k or len(settings.top_p):
        probs = torch.where(probs >= _least_kept(probs, settings), probs, 0.0)
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may lift the target to the total, beyond the last token that has any probability.
    target = (total * settings.uniform).float().minimum(total.nextafter(torch.zeros_like(total)))
    picked = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return picked.clamp_(max=logits.shape[-1] - 1)  # NaN finds no place


def _least_kept(probs: Tensor, settings: SamplingInput) -> Tensor:
    """Find the least probability that each row keeps, [num_sampled, 1]."""
    least = probs.new_zeros(probs.shape[0], 1)
    if settings.max_top_k:
        chosen = probs.index_select(0, settings.top_k_rows)
        ordered = chosen.topk(settings.max_top_k).values
        found = _least_of_top_k(ordered, settings.top_k, settings.top_k_top_p)
        least.index_copy_(0, settings.top_k_rows, found)
    if len(settings.top_p):
        found = _least_of_nucleus(probs.index_select(0, settings.top_p_rows), settings.top_p)
        least.index_copy_(0, settings.top_p_rows, found)
    return least


def _least_of_top_k(ordered: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """ordered: [rows, max_top_k], falling. The nucleus is that of the k tokens alone."""
    total = ordered.cumsum(dim=-1).gather(1, top_k - 1)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    is_kept = (rank < top_k) & ((_mass_before(ordered) < top_p * total) | (top_p >= 1))
    return ordered.gather(1, _last_of(is_kept))


def _least_of_nucleus(probs: Tensor, top_p: Tensor) -> Tensor:
    """probs: [rows, vocab]."""
    ordered = probs.topk(max(1, probs.shape[1] // _NUCLEUS_SHARE)).values
    if bool((ordered.cumsum(dim=-1)[:, -1:] < top_p).any()):
        ordered = probs.sort(dim=-1, descending=True).values
    return ordered.gather(1, _last_of(_mass_before(ordered) < top_p))


def _mass_before(ordered: Tensor) -> Tensor:
    """Sum of all tokens before each one, so that the one that crosses top_p is kept."""
    return functional.pad(ordered.cumsum(dim=-1)[:, :-1], (1, 0))


def _last_of(is_kept: Tensor) -> Tensor:
    """Index of each row's last kept token; 0 where NaN kept none."""
    return is_kept.sum(dim=-1, keepdim=True).clamp_(min=1) - 1


def _is_greedy(params: SamplingParams) -> bool:
    return params.is_greedy or params.top_k == 1


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)


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
