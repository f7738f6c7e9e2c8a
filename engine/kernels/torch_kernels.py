"""A decoder layer's operations by the references: plain PyTorch on any device, without Triton.

What a step runs on where the Triton kernels are missing or fail, and what they are compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kernels import add_norm, paged_decode, rotate_and_store, silu_mul

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kernels.step_kernels import DecodeRows, HeadNorm, KVLayer, Order


class TorchKernels:
    """`StepKernels` by the references."""

    name = "torch"
    reads_whole_tables = True

    def add_norm(
        self,
        residual: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        eps: float,
        order: Order | None,
    ) -> Tensor:
        return add_norm.reference(residual, delta, weight, eps, order)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return silu_mul.reference(gate_up)

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
        return rotate_and_store.reference(
            qkv, rotation, positions, slots, layer, num_heads=num_heads, head_norm=head_norm
        )

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
        return paged_decode.reference(query, layer, rows, scale=scale, window=window, order=order)
