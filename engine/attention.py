"""Attention over the paged KV cache, and how Transformers' own layers come to use it.

A step's tokens lie packed: first one row for each decoding sequence, longest first, then the
prompts.

    rows      | decode 0 | decode 1 | … | prompt 0 …………… | prompt 1 ……… |
    positions |   812    |   640    |   |  0 1 2 …        |  0 1 2 …      |

Decoding sequences of similar length are read as one group: their blocks are gathered side by side,
padded to the longest and masked. A sequence alone in its group is not padded, and where its blocks
lie side by side not even gathered. Prompts attend to themselves, one at a time.

A group's width depends on its longest member, so the last bits of a sequence's sums may depend on
its mates. Where every sequence is its own group (`is_batch_invariant`) they don't; prompts never
do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from engine.kv_cache import KVCache

ATTENTION_NAME = "paged"

# A row that is this much shorter than its group's longest starts a group of its own: padding costs
# 0.16 µs a token, a group 20 µs (9 heads of 64, two cores, 2026-11).
MAX_PADDING = 128
# Bound of what one group gathers per layer; a single sequence may need more.
MAX_GATHER_BYTES = 64 * 2**20


class AttentionStep(Protocol):
    """What a decoder layer needs of the step it runs in."""

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Store the new keys and values, then attend.

        query: [num_tokens, heads, head_dim]; key_value: [num_tokens, 2, kv_heads, head_dim].
        window: how many tokens back each one sees, itself included; None for all.
        Returns [num_tokens, heads, head_dim].
        """


@dataclass(frozen=True, slots=True)
class CachedSequence:
    """A decoding sequence as attention sees it."""

    num_tokens: int  # cached ones, with the one this step adds
    block_table: tuple[int, ...]  # exactly the blocks that these tokens fill


@dataclass(frozen=True, slots=True)
class LoneDecode:
    """One decode row that is read without padding."""

    row: int
    num_tokens: int
    first_slot: int  # of its first block
    blocks: Tensor | None  # [num_blocks] int64 to gather; None where they lie side by side already


@dataclass(frozen=True, slots=True)
class PaddedDecodes:
    """Neighbouring decode rows that are read together."""

    rows: slice
    width: int  # tokens that each row is padded to
    blocks: Tensor  # [num_rows * blocks_per_row] int64
    num_tokens: Tensor  # [num_rows, 1, 1, 1] int64
    # By window, made once a step: 0 where a row may look, -inf elsewhere; [num_rows, 1, 1, width].
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Hide what lies beyond each row's own tokens, or outside its window."""
        if window not in self.masks:
            token = torch.arange(self.width, device=self.num_tokens.device)
            hidden = token >= self.num_tokens
            if window is not None:
                hidden |= token < self.num_tokens - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.masks[window] = mask.masked_fill_(hidden, float("-inf"))
        return self.masks[window]


def group_decodes(
    sequences: Sequence[CachedSequence], cache: KVCache, *, is_batch_invariant: bool
) -> tuple[LoneDecode | PaddedDecodes, ...]:
    """Divide decode rows into groups; sequences: longest first."""
    groups: list[LoneDecode | PaddedDecodes] = []
    start = 0
    while start < len(sequences):
        stop = start + 1 if is_batch_invariant else _end_of_group(sequences, start, cache)
        if stop - start == 1:
            groups.append(_lone(start, sequences[start], cache))
        else:
            groups.append(_padded(slice(start, stop), sequences[start:stop], cache))
        start = stop
    return tuple(groups)


def _end_of_group(sequences: Sequence[CachedSequence], start: int, cache: KVCache) -> int:
    longest = sequences[start]
    row_bytes = len(longest.block_table) * cache.block_size * cache.bytes_per_token
    most = max(1, MAX_GATHER_BYTES // row_bytes)
    stop = start + 1
    while (
        stop < min(len(sequences), start + most)
        and longest.num_tokens - sequences[stop].num_tokens <= MAX_PADDING
    ):
        stop += 1
    return stop


def _lone(row: int, sequence: CachedSequence, cache: KVCache) -> LoneDecode:
    table = sequence.block_table
    first, last = table[0], table[-1]
    is_run = last - first == len(table) - 1 and table == tuple(range(first, last + 1))
    blocks = None if is_run else torch.tensor(table, device=cache.device)
    return LoneDecode(row, sequence.num_tokens, first * cache.block_size, blocks)


def _padded(rows: slice, sequences: Sequence[CachedSequence], cache: KVCache) -> PaddedDecodes:
    width = len(sequences[0].block_table)
    blocks: list[int] = []
    for sequence in sequences:
        table = sequence.block_table
        blocks += table
        blocks += [cache.empty_block] * (width - len(table))
    lengths = [sequence.num_tokens for sequence in sequences]
    return PaddedDecodes(
        rows=rows,
        width=width * cache.block_size,
        blocks=torch.tensor(blocks, device=cache.device),
        num_tokens=torch.tensor(lengths, device=cache.device).view(-1, 1, 1, 1),
    )


@dataclass(frozen=True, slots=True)
class PagedStep:
    """One step's view of the cache; the `AttentionStep` of real runs."""

    cache: KVCache
    slot_mapping: Tensor  # [num_tokens] int64: where each token's keys and values go
    decodes: tuple[LoneDecode | PaddedDecodes, ...]
    prompts: tuple[slice, ...]  # the rows of each prompt

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Store the new keys and values, then attend; see `AttentionStep`."""
        self.cache.write(layer_index, self.slot_mapping, key_value)
        parts = [
            self._attend_alone(layer_index, query, group, scale, window)
            if isinstance(group, LoneDecode)
            else self._attend_padded(layer_index, query, group, scale, window)
            for group in self.decodes
        ]
        parts += [
            _attend_prompt(query[rows], key_value[rows], scale, window) for rows in self.prompts
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_alone(
        self, layer_index: int, query: Tensor, group: LoneDecode, scale: float, window: int | None
    ) -> Tensor:
        first = 0 if window is None else max(0, group.num_tokens - window)
        if group.blocks is None:
            # Two cores, 3 of 9 heads, cold cache: 42 µs in place against 160 µs gathered at 256
            # tokens, 240 against 530 at 1 024.
            cached, first_slot = self.cache.layers[layer_index], group.first_slot
        else:
            cached, first_slot = self.cache.gather(layer_index, group.blocks), 0
        # Few, cheap views: with slices and transposes in their place this took 21 µs, not 17.
        seen = cached.narrow(0, first_slot + first, group.num_tokens - first)
        keys, values = seen.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        rows = query.narrow(0, group.row, 1)
        return _attend_one_token(rows, keys, values, scale=scale, mask=None)

    def _attend_padded(
        self,
        layer_index: int,
        query: Tensor,
        group: PaddedDecodes,
        scale: float,
        window: int | None,
    ) -> Tensor:
        rows = query[group.rows]
        gathered = self.cache.gather(layer_index, group.blocks)
        seen = gathered.view(rows.shape[0], group.width, *gathered.shape[1:])
        keys, values = seen.permute(2, 0, 3, 1, 4).unbind(0)
        mask = group.mask(window, query.dtype)
        return _attend_one_token(rows, keys, values, scale=scale, mask=mask)


def _attend_one_token(
    query: Tensor, keys: Tensor, values: Tensor, *, scale: float, mask: Tensor | None
) -> Tensor:
    """query: [rows, heads, head_dim]; keys, values: [rows, kv_heads, width, head_dim]."""
    # Heads share their keys by `enable_gqa`: 17 µs at 64 tokens, where folding the heads of a key
    # into query rows took 21, matmul and softmax 25, and a loop over keys 48 (3 of 9 heads, two
    # cores).
    attended = functional.scaled_dot_product_attention(
        query.unsqueeze(2), keys, values, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return attended.squeeze(2)


def _attend_prompt(query: Tensor, key_value: Tensor, scale: float, window: int | None) -> Tensor:
    """query: [num_tokens, heads, head_dim]; key_value: [num_tokens, 2, kv_heads, head_dim]."""
    num_tokens = query.shape[0]
    mask = None
    if window is not None and num_tokens > window:
        position = torch.arange(num_tokens, device=query.device)
        distance = position[:, None] - position
        mask = (distance >= 0) & (distance < window)
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        key_value[:, 0].transpose(0, 1).unsqueeze(0),
        key_value[:, 1].transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return attended.squeeze(0).transpose(0, 1)


# Keywords that Transformers' layers pass on and that don't change what attention computes.
_HARMLESS = frozenset(
    {
        "layer_idx",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


def register() -> None:
    """Make `model.set_attn_implementation("paged")` possible."""
    AttentionInterface.register(ATTENTION_NAME, _paged_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def _paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: AttentionStep,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as Transformers' layers ask for it: query [1, heads, num_tokens, head_dim]."""
    refused = {name for name, value in others.items() if value is not None} - _HARMLESS
    if attention_mask is not None:
        refused.add("attention_mask")
    if is_causal is False or not getattr(module, "is_causal", True):
        refused.add("is_causal=False")
    if dropout:
        refused.add("dropout")
    if refused:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks attention for {', '.join(sorted(refused))}, which paged"
            " attention does not know"
        )
    if value.shape != key.shape:
        raise UnsupportedModelError(
            f"{type(module).__name__} has keys of shape {tuple(key.shape)} and values of shape"
            f" {tuple(value.shape)}; paged attention needs them alike"
        )
    attended = paged.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        torch.stack((key[0], value[0])).permute(2, 0, 1, 3),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
    )
    return attended.unsqueeze(0), None


def _no_mask(*_: object, **__: object) -> None:
    """Say that masks are attention's own business."""
