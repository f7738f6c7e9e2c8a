"""What the layers on a GPU need between linear layers, whoever computes it.

`engine.kernels.triton_kernels` does it in one launch a method (two where split attention is put
together), `engine.kernels.torch_kernels` by the references. Which one a step runs on is
decided when an engine is built.

`Order` is how a gather is kept off the hot path: what a product wants permuted is stored
permuted by whoever computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """A permutation of columns, in both directions; int32, on the device."""

    gather: Tensor  # [width]: column of the result → column of the source
    scatter: Tensor  # [width]: column of the source → column of the result

    @classmethod
    def of(cls, permutation: Tensor) -> Order:
        """Make it of an input permutation, [width] int64: sorted position → input."""
        scatter = torch.empty_like(permutation)
        places = torch.arange(permutation.shape[0], device=permutation.device)
        scatter[permutation] = places
        return cls(permutation.to(torch.int32), scatter.to(torch.int32))


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One layer's keys and values, as `engine.attention.kv_cache.KVCache` keeps them."""

    values: Tensor  # [num_slots, 2, kv_heads, head_dim]; float8_e4m3fn where scales are kept
    scales: Tensor | None  # [num_slots, 2, kv_heads, 1] float16, of fp8 only


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Norms of each query head and each key head (Qwen3)."""

    query: Tensor  # [head_dim]
    key: Tensor  # [head_dim]
    eps: float


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Whose keys and values the rows of a decode step see; all tensors are read by the device."""

    slots: Tensor  # [rows] int64: each row's row of `tables`
    positions: Tensor  # [rows] int64: of each row's own token, which it sees too
    tables: Tensor  # [num_slots, max_blocks] int64: block tables
    block_size: int  # tokens a block


class StepKernels(Protocol):
    """The operations of a decoder layer on a GPU, beside its linear layers.

    Arithmetic is float32; what is stored has its tensor's dtype. Rows may be any number from 1.
    Nothing waits for the device, and nothing is made of the host's numbers: a CUDA graph holds all
    of it.
    """

    name: str  # "triton" or "torch"
    # Whether attention's time follows the width of the block tables, not the rows' own lengths.
    reads_whole_tables: bool

    def add_norm(
        self,
        residual: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        eps: float,
        order: Order | None,
    ) -> Tensor:
        """Add delta to the residual in place, then normalise it (RMSNorm).

        residual, delta: [rows, width] of the activations' dtype; weight: [width]. Returns a fresh
        [rows, width] in the dtype, its columns stored in the order.
        """

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up; gate_up: [rows, 2 * width], gate first. Returns [rows, width]."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotation: Tensor,
        positions: Tensor,
        slots: Tensor,
        layer: KVLayer,
        *,
        num_heads: int,
        head_norm: HeadNorm | None,
    ) -> Tensor:
        """Normalise (if told) and rotate queries and keys, and store keys and values.

        qkv: [rows, (num_heads + 2 * kv_heads) * head_dim]: queries, keys, values; its rows may lie
        apart. rotation: [max_positions, 2, head_dim]: cosine, and the sine whose first half is
        negated, so that rotated = x * cos + roll(x, head_dim / 2) * sin. positions: [rows] int64.
        slots: [rows] int64, places in the cache; two rows never share one but for the rows that
        pad a step. Returns the queries, [rows, num_heads, head_dim], in qkv's dtype.
        """

    def decode_attention(
        self,
        query: Tensor,
        layer: KVLayer,
        rows: DecodeRows,
        *,
        scale: float,
        window: int | None,
        order: Order | None,
    ) -> Tensor:
        """Attend with one token a row to its own sequence, itself included.

        query: [rows, num_heads, head_dim]. window: how many tokens back a row sees, itself
        included; None for all. Returns [rows, num_heads * head_dim] in query's dtype, its columns
        stored in the order.
        """
