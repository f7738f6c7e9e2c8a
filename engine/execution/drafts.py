"""Finds on the device which of a step's rows count: drafts hold as far as they were sampled.

A chunk with a draft is sampled after each of its last tokens. A row counts if all drafts before it
are what was sampled in their places; the last one that counts is where its sequence goes on.

    drafts    |    a b c |
    sampled   |  a b x … |     rows that count: the first three
    row       |  0 1 2 3 |     the last of them: 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.sampling.state import Send
    from engine.scheduling.batch import ScheduledBatch, ScheduledChunk

_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class SampledPlaces:
    """Where a step's tokens belong; rows: the decodes, then each sample of each chunk."""

    slots: Tensor  # [sequences] int64: those that sampled
    # [sequences] int64: the row of each one's last token; None where each has one row, in order
    last_rows: Tensor | None
    row_slots: Tensor | None  # [rows] int64; None where each row is a sequence's: `slots`
    counts: Tensor | None  # [rows] bool: whether a row is kept; None where all are


def sampled_places(batch: ScheduledBatch, tokens: Tensor, send: Send) -> SampledPlaces:
    """Say which rows count; tokens: [rows] int64, as sampled."""
    plain_slots = list(batch.decodes.slots)
    plain_rows = list(range(len(plain_slots)))
    row_slots = list(plain_slots)
    drafted: list[tuple[int, ScheduledChunk]] = []  # with the first row of each
    for chunk in batch.chunks:
        if chunk.num_drafts:
            drafted.append((len(row_slots), chunk))
        elif chunk.num_samples:
            plain_slots.append(chunk.slot)
            plain_rows.append(len(row_slots))
        row_slots += [chunk.slot] * chunk.num_samples
    if not drafted:
        return SampledPlaces(_send(plain_slots, send), None, None, None)
    first_rows = [row for row, _ in drafted]
    held, counts = _held([(row, chunk.drafts) for row, chunk in drafted], tokens, send)
    return SampledPlaces(
        slots=_send(plain_slots + [chunk.slot for _, chunk in drafted], send),
        last_rows=torch.cat((_send(plain_rows, send), _send(first_rows, send) + held)),
        row_slots=_send(row_slots, send),
        counts=counts,
    )


def _held(
    drafts: Sequence[tuple[int, Sequence[int]]], tokens: Tensor, send: Send
) -> tuple[Tensor, Tensor]:
    """Count each draft's tokens that hold, and mark the rows that count.

    drafts: each with its first row. Returns [drafts] int64 and [rows] bool.
    """
    longest = max(len(draft) for _, draft in drafts)
    # Shorter drafts are filled up with a token that is never sampled, for a row beyond the last.
    num_rows = tokens.shape[0]
    wanted = np.full((len(drafts), longest), _NO_TOKEN, dtype=np.int64)
    judged = np.zeros((len(drafts), longest), dtype=np.int64)  # rows that sampled in their places
    after = np.full((len(drafts), longest), num_rows, dtype=np.int64)  # rows behind them
    for place, (row, draft) in enumerate(drafts):
        wanted[place, : len(draft)] = draft
        judged[place, : len(draft)] = np.arange(row, row + len(draft))
        after[place, : len(draft)] = np.arange(row + 1, row + 1 + len(draft))
    sampled = tokens.index_select(0, send(judged.ravel())).view(len(drafts), longest)
    holds = (sampled == send(wanted)).long().cumprod(dim=1)
    counts = torch.ones(num_rows + 1, dtype=torch.bool, device=tokens.device)
    counts.index_copy_(0, send(after.ravel()), holds.bool().view(-1))
    return holds.sum(dim=1), counts[:num_rows]


def _send(values: Sequence[int], send: Send) -> Tensor:
    return send(np.array(values, dtype=np.int64))
