"""Turns a scheduled batch into the tensors of one forward pass on a GPU's path.

Rows are packed as `attention.gpu` describes. The host's numbers go to the device in two arrays,
one of int64 and, where there are chunks, one of int32 for flash attention. Which tokens decode and
which blocks they see the device knows already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.attention.gpu import GpuStep
from engine.attention.interface import ModelInput
from engine.attention.prompt import ChunkGroup, group_chunks
from engine.execution.model_input import logits_indices
from engine.kernels.step_kernels import DecodeRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from engine.attention.kv_cache import KVCache
    from engine.execution.slot_state import SlotState
    from engine.kernels.step_kernels import StepKernels
    from engine.scheduling.batch import ScheduledBatch, ScheduledChunk

    Send = Callable[[NDArray[Any]], Tensor]


def build_gpu_input(
    batch: ScheduledBatch,
    state: SlotState,
    cache: KVCache,
    kernels: StepKernels,
    send: Send,
    *,
    has_flash: bool = True,
) -> ModelInput:
    """Lay out a batch that is in `model_order` and that `state` has taken in.

    send: gives the device an array. The input of a decode is read on the device, so that a step can
    be laid out before the one before it is collected. has_flash: see `GpuStep`.
    """
    slots = np.array(batch.decodes.slots, dtype=np.int64)
    decoding = np.array(batch.decodes.positions, dtype=np.int64)
    # Where the cache holds all that each chunk sees; its own tokens last.
    seen = [state.cache_slots(chunk.slot, np.arange(chunk.stop)) for chunk in batch.chunks]
    positions = [decoding, *(np.arange(chunk.start, chunk.stop) for chunk in batch.chunks)]
    mapping = [
        state.cache_slots(slots, decoding),
        *(theirs[chunk.start :] for chunk, theirs in zip(batch.chunks, seen, strict=True)),
    ]
    known = np.array([token for chunk in batch.chunks for token in chunk.token_ids], dtype=np.int64)
    sent = _send_together(
        send,
        [
            slots,
            np.concatenate(positions),
            np.concatenate(mapping),
            known,
            logits_indices(batch),
            np.concatenate([np.zeros(0, dtype=np.int64), *seen]),
        ],
    )
    on_device, position_ids, slot_mapping, known_ids, logits_rows, seen_slots = sent
    tables = state.device_tables
    if kernels.reads_whole_tables and len(slots):
        tables = tables[:, : int(decoding.max()) // cache.block_size + 1]
    rows = DecodeRows(on_device, position_ids[: len(slots)], tables, cache.block_size)
    sampled = state.last_tokens.index_select(0, on_device)
    return ModelInput(
        token_ids=torch.cat([sampled, known_ids]) if batch.chunks else sampled,
        position_ids=position_ids,
        logits_indices=logits_rows,
        attention=GpuStep(
            cache=cache,
            kernels=kernels,
            positions=position_ids,
            slot_mapping=slot_mapping,
            decodes=rows if len(slots) else None,
            chunks=_chunk_groups(batch, cache, seen_slots, send),
            has_flash=has_flash,
        ),
    )


def _send_together(send: Send, arrays: Sequence[NDArray[np.int64]]) -> tuple[Tensor, ...]:
    """Send arrays of int64 in one, and give each of them back."""
    return send(np.concatenate(arrays)).split_with_sizes([len(array) for array in arrays])


def _chunk_groups(
    batch: ScheduledBatch, cache: KVCache, seen_slots: Tensor, send: Send
) -> tuple[ChunkGroup, ...]:
    """Divide a batch's chunks into groups; seen_slots: [keys of all] int64."""
    chunks = batch.chunks
    divided = group_chunks([chunk.stop for chunk in chunks], cache.bytes_per_token)
    if not divided:
        return ()
    ends = [_ends(chunks[part]) for part in divided]
    sent = send(np.concatenate(ends, axis=1, dtype=np.int32))
    groups: list[ChunkGroup] = []
    first_row, first_key, first_end = len(batch.decodes), 0, 0
    for part, (row_ends, key_ends) in zip(divided, ends, strict=True):
        stop_row, stop_key = first_row + int(row_ends[-1]), first_key + int(key_ends[-1])
        stop_end = first_end + len(row_ends)
        groups.append(
            ChunkGroup(
                rows=slice(first_row, stop_row),
                slots=seen_slots[first_key:stop_key],
                row_ends=sent[0, first_end:stop_end],
                key_ends=sent[1, first_end:stop_end],
                num_rows=tuple(len(chunk.token_ids) for chunk in chunks[part]),
                num_keys=tuple(chunk.stop for chunk in chunks[part]),
            )
        )
        first_row, first_key, first_end = stop_row, stop_key, stop_end
    return tuple(groups)


def _ends(chunks: Sequence[ScheduledChunk]) -> NDArray[np.int64]:
    """Return, from 0, where each chunk's rows end and where its keys do, [2, chunks + 1]."""
    num_rows = [0, *(len(chunk.token_ids) for chunk in chunks)]
    num_keys = [0, *(chunk.stop for chunk in chunks)]
    return np.cumsum(np.array([num_rows, num_keys], dtype=np.int64), axis=1)
