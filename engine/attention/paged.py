"""Attention over the paged KV cache, as a step on the CPU runs it.

A step's tokens lie packed: first one row for each decoding sequence, longest first, then the
chunks: stretches of prompts, or a last token with a draft behind it.

    rows      | decode 0 | decode 1 | … | chunk 0 …………… | chunk 1 ……… |
    positions |   812    |   640    |   |  0 1 2 …       |  512 513 …    |

All new keys and values are stored first, so a chunk may read what another one of the same step
wrote. Decoding sequences of similar length are read as one group: their blocks are gathered side
by side, padded to the longest and masked. A sequence alone in its group is not padded, and where
its blocks lie side by side not even gathered. A chunk that begins its sequence attends to itself;
any other gathers what is cached before it.

How sums are ordered then depends on mates and on where chunks begin. Pieces of prompts are laid
into windows instead (`windows`), so that a row's sums depend on its position only. `RowByRow` goes
further: every token attends by itself, to exactly the tokens it sees. Slow, and the same in any
company.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from engine.attention.windows import attend_in_windows, attend_masked, mask_of

if TYPE_CHECKING:
    from torch import Tensor

    from engine.attention.kv_cache import KVCache
    from engine.attention.windows import AttendPiece

# A row that is this much shorter than its group's longest starts a group of its own: padding costs
# 0.16 µs a token, a group 20 µs (9 heads of 64, two cores, 2026-11).
MAX_PADDING = 128
# Bound of what one group gathers per layer; a single sequence may need more.
MAX_GATHER_BYTES = 64 * 2**20
# Rows of a chunk that share a mask over all they see: 4 MB of it at 8 192 tokens.
MAX_MASKED_ROWS = 128


@dataclass(frozen=True, slots=True)
class Run:
    """Where a sequence's tokens lie: side by side, or in blocks to gather."""

    num_tokens: int  # that are seen: cached ones, with those this step adds
    first_slot: int  # of its first block
    blocks: Tensor | None  # [num_blocks] int64 to gather; None where they lie side by side already

    def read(self, cache: KVCache, layer_index: int) -> Tensor:
        """Return [num_tokens, 2, kv_heads, head_dim]."""
        if self.blocks is None:
            # Two cores, 3 of 9 heads, cold cache: 42 µs in place against 160 µs gathered at 256
            # tokens, 240 against 530 at 1 024.
            return cache.read_run(layer_index, self.first_slot, self.num_tokens)
        return cache.gather(layer_index, self.blocks).narrow(0, 0, self.num_tokens)


@dataclass(frozen=True, slots=True)
class LoneDecode:
    """One decode row that is read without padding."""

    row: int
    run: Run


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
            self.masks[window] = mask_of(token, self.num_tokens, window, dtype)
        return self.masks[window]


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """The rows of one chunk."""

    rows: slice
    start: int  # position of the first row
    run: Run | None  # all that its last row sees; None where the chunk begins its sequence
    is_piece: bool = False  # whole blocks, which are attended to window by window


@dataclass(frozen=True, slots=True)
class PagedStep:
    """One step's view of the cache; the `AttentionStep` of real runs."""

    cache: KVCache
    slot_mapping: Tensor  # [num_tokens] int64: where each token's keys and values go
    decodes: tuple[LoneDecode | PaddedDecodes, ...]
    chunks: tuple[ChunkRows, ...]
    attend_piece: AttendPiece = attend_in_windows  # of a prompt

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
        parts: list[Tensor] = []
        for group in self.decodes:
            if isinstance(group, LoneDecode):
                seen = group.run.read(self.cache, layer_index)
                parts.append(attend_to_last(query[group.row : group.row + 1], seen, scale, window))
            else:
                parts.append(self._attend_padded(layer_index, query, group, scale, window))
        for chunk in self.chunks:
            rows = query[chunk.rows]
            if chunk.run is None:
                seen = self.cache.rounded(key_value[chunk.rows])
                parts.append(_attend_from_start(rows, seen, scale, window))
            else:
                seen = chunk.run.read(self.cache, layer_index)
                attend = self.attend_piece if chunk.is_piece else attend_onward
                parts.append(attend(rows, seen, chunk.start, scale, window))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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
        return attend_one_each(rows, seen, scale, group.mask(window, query.dtype))


@dataclass(frozen=True, slots=True)
class RowByRow:
    """The `AttentionStep` in which nothing but its own tokens touches a row."""

    cache: KVCache
    slot_mapping: Tensor  # [num_tokens] int64
    runs: tuple[Run, ...]  # what each row sees, itself last

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
        return torch.cat(
            [
                # A copy lies as any other one would: sums may depend on where memory begins.
                attend_to_last(
                    query[row : row + 1].clone(),
                    run.read(self.cache, layer_index).clone(),
                    scale,
                    window,
                )
                for row, run in enumerate(self.runs)
            ]
        )


def attend_to_last(query: Tensor, seen: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend with the last of these tokens: query [1, heads, head_dim], seen [tokens, 2, …]."""
    if window is not None and seen.shape[0] > window:
        seen = seen.narrow(0, seen.shape[0] - window, window)
    return attend_one_each(query, seen.unsqueeze(0), scale, None)


def attend_one_each(query: Tensor, seen: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Attend with one token a row.

    query: [rows, heads, head_dim]; seen: [rows, width, 2, kv_heads, head_dim]; mask: [rows, 1, 1,
    width], added to scores.
    """
    # Few, cheap views: with slices and transposes in their place this took 21 µs, not 17.
    keys, values = seen.permute(2, 0, 3, 1, 4).unbind(0)
    # Heads share their keys by `enable_gqa`: 17 µs at 64 tokens, where folding the heads of a key
    # into query rows took 21, matmul and softmax 25, and a loop over keys 48 (3 of 9 heads, two
    # cores).
    attended = functional.scaled_dot_product_attention(
        query.unsqueeze(2), keys, values, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return attended.squeeze(2)


def _attend_from_start(query: Tensor, seen: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend among the first tokens of a sequence; as many seen as asking."""
    num_tokens = query.shape[0]
    if window is not None and num_tokens > window:
        return attend_onward(query, seen, 0, scale, window)
    return attend_masked(query, seen, scale, mask=None)


def attend_onward(
    query: Tensor, seen: Tensor, start: int, scale: float, window: int | None
) -> Tensor:
    """Attend with tokens from position `start` on to all up to them."""
    parts: list[Tensor] = []
    for first in range(0, query.shape[0], MAX_MASKED_ROWS):
        rows = query[first : first + MAX_MASKED_ROWS]
        num_seen = start + first + rows.shape[0]
        position = torch.arange(num_seen, device=query.device)
        limits = position[start + first :, None] + 1
        mask = mask_of(position, limits, window, query.dtype)
        parts.append(attend_masked(rows, seen[:num_seen], scale, mask))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
