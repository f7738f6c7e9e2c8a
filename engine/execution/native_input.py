"""Turns a scheduled batch into the tensors of one forward pass by kernels in C++.

Each row says at which position it stands and in whose table its tokens are found; slots' tables are
read where they lie. Rows lie as in `model_input`, and this takes a third of the time: what is made
there for groups of rows, and of what they see, is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.attention.interface import ModelInput
from engine.attention.native_step import NativeStep
from engine.execution.model_input import is_for_cache, logits_indices, token_ids
from native.attention import Sequences

if TYPE_CHECKING:
    from engine.attention.kv_cache import KVCache
    from engine.execution.slot_state import SlotState
    from engine.scheduling.batch import ScheduledBatch


def build_native_input(
    batch: ScheduledBatch, state: SlotState, cache: KVCache, *, has_pieces: bool = False
) -> ModelInput:
    """Lay out a batch that is in `model_order` and that `state` has taken in.

    has_pieces: the batch holds pieces of prompts and nothing else. What is made is good until the
    slots take in the next batch.
    """
    send = state.to_device.send
    decoding = np.array(batch.decodes.slots, dtype=np.int64)
    slots = decoding
    positions = np.array(batch.decodes.positions, dtype=np.int64)
    pieces = None
    if batch.chunks:
        told = [(len(chunk.token_ids), chunk.start, chunk.slot) for chunk in batch.chunks]
        chunks = np.array(told, dtype=np.int64)
        slots = np.concatenate([slots, chunks[:, 2].repeat(chunks[:, 0])])
        ranges = [np.arange(chunk.start, chunk.stop) for chunk in batch.chunks]
        positions = np.concatenate([positions, *ranges])
        pieces = send(chunks) if has_pieces else None
    position_ids = send(positions)
    return ModelInput(
        token_ids=token_ids(decoding, batch, state),
        position_ids=position_ids,
        logits_indices=send(logits_indices(batch)) if batch.chunks else None,
        attention=NativeStep(
            cache=cache,
            slots=send(state.cache_slots(slots, positions)),
            seen=Sequences(state.device_tables, send(slots), position_ids, cache.block_size),
            pieces=pieces,
        ),
        has_pieces=has_pieces,
        is_for_cache=is_for_cache(batch),
    )
