"""Tells how likely tokens were: of the model's own distribution, before any setting.

A row's numbers depend on the row alone. Sums are of whole numbers (see `token_filters`), and equal
logits are told in the order of their ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.outputs import TokenLogprobs
from engine.sampling.token_filters import SCALE, to_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

# Rows of a prompt that are looked at together: what is made of 64 rows of 150 000 logits takes
# 0.2 GB, of a whole chunk several.
_BLOCK_ROWS = 64
# The same in bytes where logits are made for it alone: less than what a chunk takes between its
# layers, so that telling of it takes a step no more memory than running it.
_MAX_BLOCK_BYTES = 48 * 2**20
# For each row and token of the vocabulary (counted on the meta device, 2026-11).
_BLOCK_NUMBER_BYTES = 40


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """One token's logprob a row, and those of the row's leading tokens; tensors of one device."""

    picked: Tensor  # [rows] float32
    top_ids: Tensor  # [rows, num_top] int64, likeliest first
    top: Tensor  # [rows, num_top] float32

    def cpu(self) -> RowLogprobs:
        """Copy to the host; waits for the device."""
        return RowLogprobs(self.picked.cpu(), self.top_ids.cpu(), self.top.cpu())


def row_logprobs(
    logits: Tensor, tokens: Tensor, num_top: int, token_ids: Tensor | None = None
) -> RowLogprobs:
    """Look up one token a row, and the leading ones.

    logits: [rows, vocab] float32. tokens: [rows] int64. token_ids: [vocab] int64, 0, 1, 2 …, for
    a caller who may not make tensors here.
    """
    if token_ids is None:
        token_ids = torch.arange(logits.shape[1], device=logits.device)
    most = logits.amax(dim=-1, keepdim=True)
    weights = to_weights((logits - most).exp_().mul_(SCALE))
    total = weights.sum(dim=-1, keepdim=True).clamp_(min=1)
    top_ids = _leading(logits, num_top, token_ids)
    ids = torch.cat((tokens.unsqueeze(1), top_ids), dim=1)
    logprobs = logits.gather(1, ids) - most - total.double().log_().sub_(math.log(SCALE))
    logprobs = logprobs.float()
    return RowLogprobs(logprobs[:, 0], top_ids, logprobs[:, 1:])


def to_token_logprobs(rows: RowLogprobs, asked: Sequence[int | None]) -> list[TokenLogprobs | None]:
    """Give each row as many leading tokens as it asked for, and None to those that didn't ask.

    asked: of the first rows, in order; rows behind them were padding.
    """
    columns = zip(asked, rows.picked.tolist(), rows.top_ids.tolist(), rows.top.tolist())  # noqa: B905
    return [
        None
        if num is None
        else TokenLogprobs(picked, tuple(zip(ids[:num], logprobs[:num], strict=True)))
        for num, picked, ids, logprobs in columns
    ]


def prompt_logprobs(logits: Tensor, targets: Tensor, num_top: int) -> RowLogprobs:
    """Tell how likely each of a prompt's tokens was.

    logits: [rows, vocab] float32. targets: [rows] int64, the token that followed each row.
    """
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    return _joined(
        row_logprobs(logits[start:stop], targets[start:stop], num_top, token_ids)
        for start, stop in _blocks(len(targets), _BLOCK_ROWS)
    )


def prompt_logprobs_of(
    rows: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, num_top: int, vocab_size: int
) -> RowLogprobs:
    """Do the same of rows [rows, hidden] whose logits `head` makes, a few of them at a time."""
    at_once = max(1, _MAX_BLOCK_BYTES // (_BLOCK_NUMBER_BYTES * vocab_size))
    return _joined(
        row_logprobs(head(rows[start:stop]), targets[start:stop], num_top)
        for start, stop in _blocks(len(targets), at_once)
    )


def _joined(blocks: Iterable[RowLogprobs]) -> RowLogprobs:
    found = list(blocks)
    return RowLogprobs(
        torch.cat([block.picked for block in found]),
        torch.cat([block.top_ids for block in found]),
        torch.cat([block.top for block in found]),
    )


def to_prompt_logprobs(rows: RowLogprobs) -> tuple[TokenLogprobs, ...]:
    """Give every row all the leading tokens that there are of it; waits for the device."""
    told = to_token_logprobs(rows, [rows.top.shape[1]] * len(rows.picked))
    return tuple(row for row in told if row is not None)


def _blocks(num_rows: int, at_once: int) -> list[tuple[int, int]]:
    starts = range(0, max(1, num_rows), at_once)  # one block where there is no row
    return [(start, min(start + at_once, num_rows)) for start in starts]


def _leading(logits: Tensor, num_top: int, token_ids: Tensor) -> Tensor:
    """Find the ids of the largest logits, the lower id first where two are equal."""
    # Read as a whole number, a float's bits are in its order; below zero, once they are flipped.
    bits = logits.view(torch.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (order.long() << 32) | (0xFFFFFFFF - token_ids)
    leading = keys.topk(num_top, dim=-1).values
    return 0xFFFFFFFF - (leading & 0xFFFFFFFF)
