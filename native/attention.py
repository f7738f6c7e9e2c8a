"""Attention over the paged KV cache: of single tokens in float32, of prompts' pieces in bfloat16.

A row's bits depend on its position and on what it sees, not on the rows beside it: keys are looked
at in parts that begin at fixed positions, and their sums are put together in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

HEAD_DIMS = (64, 96, 128, 256)
MAX_SHARED = 64  # query heads for one key head, `kMaxGroup` in the source


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where the cache holds what rows see."""

    tables: Tensor  # [sequences, blocks] int64: which blocks, in order
    rows: Tensor  # [rows] int64: each row's sequence, its row of `tables`
    positions: Tensor  # [rows] int64: each row's own, which it sees too
    block_size: int  # tokens a block


def attend_rows(
    query: Tensor, kv_layer: Tensor, seen: Sequences, *, scale: float, window: int | None
) -> Tensor:
    """Attend with each row to its own sequence, up to its position.

    query: [rows, heads, head_dim] float32. kv_layer: [num_slots, 2, kv_heads, head_dim], float32,
    bfloat16 or float16. window: how many tokens back a row sees, itself included; None for all.
    Returns [rows, heads * head_dim] float32.
    """
    attended: Tensor = torch.ops.tetrad.attend_rows.default(
        query, kv_layer, seen.tables, seen.rows, seen.positions, seen.block_size, scale, window or 0
    )
    return attended


def attend_pieces(
    query: Tensor,
    kv_layer: Tensor,
    tables: Tensor,
    pieces: Tensor,
    block_size: int,
    *,
    scale: float,
    window: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Attend with stretches of prompts, each to its sequence from the start.

    Products of queries and keys, and of weights and values, are of bfloat16 with float32 sums;
    softmax is float32. pieces: [pieces, 3] int64 on the host: number of rows, position of the
    first, row of `tables`; they lie in order. Other arguments as in `attend_rows`. Returns [rows,
    heads * head_dim] in the dtype, float32 or bfloat16.
    """
    attended: Tensor = torch.ops.tetrad.attend_pieces.default(
        query, kv_layer, tables, pieces, block_size, scale, window or 0, dtype
    )
    return attended
