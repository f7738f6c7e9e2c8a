"""Turns a scheduled batch into the tensors of one forward pass.

Rows are packed as `attention.paged` describes: decoding sequences first, longest first, then the
chunks, and of these first those of one last token. All indices are int64, so that no size of cache
or vocabulary can wrap around.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.attention.interface import ModelInput
from engine.attention.paged import (
    MAX_GATHER_BYTES,
    MAX_PADDING,
    ChunkRows,
    LoneDecode,
    PaddedDecodes,
    PagedStep,
    RowByRow,
)
from engine.attention.windows import attend_in_windows
from engine.scheduling.batch import Decodes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from engine.attention.interface import AttentionStep
    from engine.attention.kv_cache import KVCache
    from engine.attention.windows import AttendPiece
    from engine.execution.slot_state import SlotState
    from engine.scheduling.batch import ScheduledBatch, ScheduledChunk


def model_order(batch: ScheduledBatch) -> ScheduledBatch:
    """Sort a batch as its rows will lie: the longest decoding sequences first.

    Chunks that are a sequence's last token and nothing else come before others, the longest first.
    """
    decodes = batch.decodes
    order = sorted(range(len(decodes)), key=decodes.positions.__getitem__, reverse=True)
    in_order = Decodes(
        tuple(map(decodes.sequence_ids.__getitem__, order)),
        tuple(map(decodes.slots.__getitem__, order)),
        tuple(map(decodes.positions.__getitem__, order)),
    )
    chunks = sorted(batch.chunks, key=lambda each: -each.start if _is_last_token(each) else 1)
    return replace(batch, decodes=in_order, chunks=tuple(chunks))


def build_model_input(
    batch: ScheduledBatch,
    state: SlotState,
    cache: KVCache,
    *,
    is_batch_invariant: bool,
    has_pieces: bool = False,
    attend_piece: AttendPiece = attend_in_windows,
) -> ModelInput:
    """Lay out a batch that is in `model_order` and that `state` has taken in.

    The input of a decode is read on the device, so that a step can be laid out before the one
    before it is collected. has_pieces: the batch holds pieces of prompts and nothing else.
    attend_piece: one of `ways_to_attend`, the same in all steps, by which pieces are attended to.
    """
    send = state.to_device.send
    slots = np.array(batch.decodes.slots, dtype=np.int64)
    positions = np.array(batch.decodes.positions, dtype=np.int64)
    chunk_positions = [np.arange(chunk.start, chunk.stop) for chunk in batch.chunks]
    cache_slots = [
        state.cache_slots(slots, positions),
        *(
            state.cache_slots(chunk.slot, theirs)
            for chunk, theirs in zip(batch.chunks, chunk_positions, strict=True)
        ),
    ]
    slot_mapping = send(np.concatenate(cache_slots))
    attention: AttentionStep
    if is_batch_invariant:
        runs = [state.run(slot, n + 1) for slot, n in zip(slots, positions, strict=True)]
        for chunk in batch.chunks:
            runs += (state.run(chunk.slot, n + 1) for n in range(chunk.start, chunk.stop))
        attention = RowByRow(cache, slot_mapping, tuple(runs))
    else:
        attention = PagedStep(
            cache,
            slot_mapping,
            (
                *_group_decodes(slots, positions, state, cache),
                *_group_last_tokens(batch, state, cache),
            ),
            _chunk_rows(batch, state, are_pieces=has_pieces),
            attend_piece,
        )
    return ModelInput(
        token_ids=token_ids(slots, batch, state),
        position_ids=send(np.concatenate([positions, *chunk_positions])),
        logits_indices=send(logits_indices(batch)),
        attention=attention,
        has_pieces=has_pieces,
        is_for_cache=is_for_cache(batch),
    )


def num_logits(chunk: ScheduledChunk) -> int:
    """After how many of a chunk's tokens logits are needed: its last ones."""
    return len(chunk.token_ids) if chunk.prompt_targets is not None else chunk.num_samples


def logits_indices(batch: ScheduledBatch) -> NDArray[np.int64]:
    """Say after which rows logits are needed; at least one."""
    rows = [np.arange(len(batch.decodes))]
    stop = len(batch.decodes)
    for chunk in batch.chunks:
        stop += len(chunk.token_ids)
        rows.append(np.arange(stop - num_logits(chunk), stop))
    indices = np.concatenate(rows)
    # Where only chunks run that go on, nothing is sampled; models want at least one row.
    return indices if len(indices) else np.zeros(1, dtype=np.int64)


def is_for_cache(batch: ScheduledBatch) -> bool:
    """Whether nothing is sampled, so that all that counts is what the batch leaves in the cache."""
    return not batch.decodes and not any(map(num_logits, batch.chunks))


def token_ids(slots: NDArray[np.int64], batch: ScheduledBatch, state: SlotState) -> Tensor:
    """Give every row's token: of decodes, whose slots these are, what was sampled last."""
    sampled = state.last_tokens.index_select(0, state.to_device.send(slots))
    if not batch.chunks:
        return sampled
    known = [token_id for chunk in batch.chunks for token_id in chunk.token_ids]
    return torch.cat([sampled, state.to_device.send(np.array(known, dtype=np.int64))])


def _is_last_token(chunk: ScheduledChunk) -> bool:
    """Whether it is a decode like any other, whose token the host happens to know."""
    return chunk.is_decode and len(chunk.token_ids) == 1


def _group_last_tokens(
    batch: ScheduledBatch, state: SlotState, cache: KVCache
) -> tuple[LoneDecode | PaddedDecodes, ...]:
    """Divide the chunks of one last token as decodes are.

    Attended to chunk by chunk, eight of them took a quarter of the step (two cores, 2026-11).
    """
    alone = [chunk for chunk in batch.chunks if _is_last_token(chunk)]
    slots = np.array([chunk.slot for chunk in alone], dtype=np.int64)
    positions = np.array([chunk.start for chunk in alone], dtype=np.int64)
    return _group_decodes(slots, positions, state, cache, first_row=len(batch.decodes))


def _group_decodes(
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    state: SlotState,
    cache: KVCache,
    first_row: int = 0,
) -> tuple[LoneDecode | PaddedDecodes, ...]:
    """Divide decode rows into groups of similar length; longest first.

    first_row: where the first of them lies in the step.
    """
    groups: list[LoneDecode | PaddedDecodes] = []
    bytes_per_block = cache.block_size * cache.bytes_per_token
    falling = -positions
    num_tokens = state.to_device.send(positions + 1).view(-1, 1, 1, 1)
    start = 0
    while start < len(slots):
        longest = int(positions[start]) + 1
        width = -(-longest // cache.block_size)
        # Positions fall, so those near enough to the longest end where they are searched for.
        near = int(np.searchsorted(falling, falling[start] + MAX_PADDING, side="right"))
        most = max(1, MAX_GATHER_BYTES // (width * bytes_per_block))
        stop = min(near, start + most)
        if stop - start == 1:
            groups.append(LoneDecode(first_row + start, state.run(int(slots[start]), longest)))
        else:
            groups.append(
                PaddedDecodes(
                    rows=slice(first_row + start, first_row + stop),
                    width=width * cache.block_size,
                    blocks=state.to_device.send(state.tables[slots[start:stop], :width].ravel()),
                    num_tokens=num_tokens[start:stop],
                )
            )
        start = stop
    return tuple(groups)


def _chunk_rows(
    batch: ScheduledBatch, state: SlotState, *, are_pieces: bool
) -> tuple[ChunkRows, ...]:
    rows: list[ChunkRows] = []
    first = len(batch.decodes)
    for chunk in batch.chunks:
        stop = first + len(chunk.token_ids)
        if _is_last_token(chunk):
            first = stop
            continue
        # Pieces read back even what they begin with, for that is how those behind them find it.
        run = state.run(chunk.slot, chunk.stop) if chunk.start or are_pieces else None
        rows.append(ChunkRows(slice(first, stop), chunk.start, run, is_piece=are_pieces))
        first = stop
    return tuple(rows)
