"""Attention over the paged KV cache by kernels in C++, as a step on the CPU runs it.

They find each row's tokens through its block table, so nothing is gathered, padded or masked, and
the tables are those that the slots keep. A row's sums follow from its position and from what it
sees, however many are beside it: of prompts' pieces by one way, of everything else by another.
Pieces attend in bfloat16 where the model's products are of it, else as without these kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.attention.windows import attend_in_windows
from native import attention, rows

if TYPE_CHECKING:
    from torch import Tensor

    from engine.attention.kv_cache import KVCache
    from native.attention import Sequences
    from native.rows import HeadNorm


@dataclass(frozen=True, slots=True)
class NativeStep:
    """One step's view of the cache, which must be kept in a type that `native.attention` reads.

    It is no `AttentionStep`: layers of C++ kernels alone take it, and give it joined rows.
    """

    cache: KVCache
    slots: Tensor  # [num_tokens] int64: where each token's keys and values go
    seen: Sequences  # of each token
    # [pieces, 3] int64: rows, first position, table; None where every row attends by itself.
    pieces: Tensor | None = None

    def attend_joined(
        self,
        layer_index: int,
        qkv: Tensor,
        rotation: Tensor,
        *,
        num_heads: int,
        head_norm: HeadNorm | None,
        scale: float,
        window: int | None,
        rounded: torch.dtype | None,
    ) -> Tensor:
        """Rotate queries and keys, store keys and values, then attend.

        qkv, rotation, head_norm: as in `native.rows.rotate_and_store`. rounded: where pieces may
        attend in bfloat16, the type of what they get, float32 or bfloat16; None where they may not.
        Returns [num_tokens, num_heads * head_dim], float32 but of pieces that were told otherwise.
        """
        query = rows.rotate_and_store(
            qkv,
            rotation,
            self.seen.positions,
            self.slots,
            self.cache.layer(layer_index).values,
            num_heads=num_heads,
            head_norm=head_norm,
        )
        return self._attend(layer_index, query, scale, window, rounded)

    def _attend(
        self,
        layer_index: int,
        query: Tensor,
        scale: float,
        window: int | None,
        rounded: torch.dtype | None,
    ) -> Tensor:
        kept = self.cache.layer(layer_index).values
        seen = self.seen
        if self.pieces is None:
            return attention.attend_rows(query, kept, seen, scale=scale, window=window)
        if rounded is None:
            return self._attend_in_windows(layer_index, query, self.pieces, scale, window)
        return attention.attend_pieces(
            query,
            kept,
            seen.tables,
            self.pieces,
            seen.block_size,
            scale=scale,
            window=window,
            dtype=rounded,
        )

    def _attend_in_windows(
        self,
        layer_index: int,
        query: Tensor,
        pieces: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attend with pieces in float32, which C++ does row by row only."""
        parts: list[Tensor] = []
        row = 0
        for num_rows, start, table in pieces.tolist():
            stop = start + num_rows
            blocks = self.seen.tables[table, : -(-stop // self.seen.block_size)]
            seen = self.cache.gather(layer_index, blocks)[:stop]
            rows_of_piece = query[row : row + num_rows]
            parts.append(attend_in_windows(rows_of_piece, seen, start, scale, window))
            row += num_rows
        return torch.cat(parts).flatten(1)
