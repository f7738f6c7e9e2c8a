"""Runs a step in two passes: prompts by the way of many rows, the rest by that of few.

What goes which way, and why, stands in `engine.scheduling.pieces`.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch

from engine.scheduling.pieces import split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from engine.sampling.logprobs import RowLogprobs
    from engine.scheduling.batch import ScheduledBatch


class RunPass(Protocol):
    """Runs a batch in one pass."""

    def __call__(
        self, batch: ScheduledBatch, *, has_pieces: bool = False
    ) -> tuple[Tensor, dict[int, RowLogprobs]]:
        """Return the logits that are sampled from, and what is told of prompts, by sequence."""


def run_both_ways(
    batch: ScheduledBatch,
    block_size: int,
    run: RunPass,
    send_ids: Callable[[Sequence[int]], Tensor],
) -> tuple[Tensor, dict[int, RowLogprobs]]:
    """Run a batch in one pass or two; return what `run` does, in the batch's order.

    send_ids: brings numbers to where logits lie.
    """
    pieces, rest = split(batch, block_size)
    if not pieces.chunks:
        return run(batch)
    logits, told = run(pieces, has_pieces=True)
    if not rest.sequence_ids:
        return logits, told
    others, told_of_others = run(rest)
    sampled = [*_sampled_ids(rest), *_sampled_ids(pieces)]
    wanted = _sampled_ids(batch)
    rows = torch.cat((others, logits)) if logits.shape[0] else others
    if sampled != wanted:
        places = {each: place for place, each in enumerate(sampled)}
        rows = rows.index_select(0, send_ids([places[each] for each in wanted]))
    return rows, told | told_of_others


def _sampled_ids(batch: ScheduledBatch) -> list[tuple[int, int]]:
    """Name the rows that are sampled from, in order: sequence, and which of its samples."""
    of_chunks = chain.from_iterable(
        ((chunk.sequence_id, index) for index in range(chunk.num_samples)) for chunk in batch.chunks
    )
    return [*((sequence_id, 0) for sequence_id in batch.decodes.sequence_ids), *of_chunks]
