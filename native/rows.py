"""What stands between a decoder layer's products, row by row: norms, rotation, activation.

Arithmetic is float32. Rows are float32 or bfloat16, whichever the products want, and may be any
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Norms of each query head and each key head (Qwen3)."""

    query: Tensor  # [head_dim] float32
    key: Tensor  # [head_dim] float32
    eps: float


def add_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Add delta to the residual in place, then normalise it (RMSNorm).

    residual: [rows, width] float32; delta: the like, or bfloat16; weight: [width] float32.
    Returns a fresh [rows, width] in the dtype.
    """
    normed: Tensor = torch.ops.tetrad.add_norm.default(residual, delta, weight, eps, dtype)
    return normed


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; gate_up: [rows, 2 * width], gate first. Returns [rows, width], its dtype."""
    product: Tensor = torch.ops.tetrad.silu_mul.default(gate_up)
    return product


def rotate_and_store(
    qkv: Tensor,
    rotation: Tensor,
    positions: Tensor,
    slots: Tensor,
    kv_layer: Tensor,
    *,
    num_heads: int,
    head_norm: HeadNorm | None,
) -> Tensor:
    """Normalise (if told) and rotate queries and keys, and store keys and values.

    qkv: [rows, (num_heads + 2 * kv_heads) * head_dim]: queries, keys, values. rotation:
    [max_positions, 2, head_dim] float32: cosine, and the sine whose first half is negated.
    positions, slots: [rows] int64. kv_layer: [num_slots, 2, kv_heads, head_dim], float32, bfloat16
    or float16. Returns the queries, [rows, num_heads, head_dim] float32.
    """
    norms = (
        (None, None, 0.0) if head_norm is None else (head_norm.query, head_norm.key, head_norm.eps)
    )
    query: Tensor = torch.ops.tetrad.rotate_and_store.default(
        qkv, rotation, positions, slots, kv_layer, num_heads, *norms
    )
    return query
