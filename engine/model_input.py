"""Turns a scheduled batch into the tensors of one forward pass.

Rows are packed as `attention` describes: decoding sequences first, longest first, then the prompts.
All indices are int64, so that no size of cache or vocabulary can wrap around.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from engine.attention import CachedSequence, PagedStep, group_decodes
from engine.batch import ScheduledBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.attention import AttentionStep
    from engine.batch import ScheduledDecode, ScheduledPrefill
    from engine.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model needs for one forward pass."""

    token_ids: Tensor  # [num_tokens] int64
    position_ids: Tensor  # [num_tokens] int64
    logits_indices: Tensor  # [num_seqs] int64: the token after which each sequence samples
    attention: AttentionStep


def model_order(batch: ScheduledBatch) -> ScheduledBatch:
    """Sort a batch as its rows will lie: the longest decoding sequences first."""
    decodes = sorted(batch.decodes, key=lambda decode: decode.position, reverse=True)
    return ScheduledBatch(tuple(decodes), batch.prefills)


def build_model_input(
    batch: ScheduledBatch, last_tokens: Tensor, cache: KVCache, *, is_batch_invariant: bool
) -> ModelInput:
    """Lay out a batch that is in `model_order`.

    last_tokens: [max_num_seqs] int64, by slot: what each sequence sampled last. It is read on the
    device, so that a step can be laid out before the one before it is collected.
    """
    decodes, prefills = batch.decodes, batch.prefills
    lengths = [len(prefill.token_ids) for prefill in prefills]
    ends = list(accumulate(lengths, initial=len(decodes)))
    prompts = tuple(slice(start, stop) for start, stop in pairwise(ends))

    positions = [decode.position for decode in decodes]
    slots = [_slot_at(decode.block_table, decode.position, cache) for decode in decodes]
    for prefill in prefills:
        positions += range(len(prefill.token_ids))
        slots += _first_slots(prefill, cache)
    logits_indices = [*range(len(decodes)), *(stop - 1 for stop in ends[1:])]

    cached = [_cached(decode, cache.block_size) for decode in decodes]
    return ModelInput(
        token_ids=_token_ids(decodes, prefills, last_tokens),
        position_ids=torch.tensor(positions, device=cache.device),
        logits_indices=torch.tensor(logits_indices, device=cache.device),
        attention=PagedStep(
            cache=cache,
            slot_mapping=torch.tensor(slots, device=cache.device),
            decodes=group_decodes(cached, cache, is_batch_invariant=is_batch_invariant),
            prompts=prompts,
        ),
    )


def _token_ids(
    decodes: Sequence[ScheduledDecode], prefills: Sequence[ScheduledPrefill], last_tokens: Tensor
) -> Tensor:
    slots = torch.tensor([decode.slot for decode in decodes], dtype=torch.int64)
    sampled = last_tokens.index_select(0, slots.to(last_tokens.device))
    if not prefills:
        return sampled
    prompt = [token_id for prefill in prefills for token_id in prefill.token_ids]
    return torch.cat([sampled, torch.tensor(prompt, device=last_tokens.device)])


def _cached(decode: ScheduledDecode, block_size: int) -> CachedSequence:
    num_tokens = decode.position + 1
    return CachedSequence(num_tokens, decode.block_table[: -(-num_tokens // block_size)])


def _slot_at(block_table: Sequence[int], position: int, cache: KVCache) -> int:
    block, offset = divmod(position, cache.block_size)
    return block_table[block] * cache.block_size + offset


def _first_slots(prefill: ScheduledPrefill, cache: KVCache) -> list[int]:
    size = cache.block_size
    slots = [block * size + offset for block in prefill.block_table for offset in range(size)]
    return slots[: len(prefill.token_ids)]
