"""A decoder layer's operations by the Triton kernels, each in one launch.

Import it where Triton is to be used only; `engine.kernels.choice` says whether it can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kernels import add_norm, paged_decode, rotate_and_store, silu_mul

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kernels.step_kernels import DecodeRows, HeadNorm, KVLayer, Order


class TritonKernels:
    """`StepKernels` by the Triton kernels."""

    name = "triton"
    reads_whole_tables = False

    def add_norm(
        self,
        residual: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        eps: float,
        order: Order | None,
    ) -> Tensor:
        return add_norm.add_norm(residual, delta, weight, eps, order)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return silu_mul.silu_mul(gate_up)

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
        return rotate_and_store.rotate_and_store(
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
        return paged_decode.decode_attention(
            query, layer, rows, scale=scale, window=window, order=order
        )
