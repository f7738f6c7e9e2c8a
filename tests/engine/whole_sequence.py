"""Attention of one whole sequence from its beginning, for tests of layers: no cache, no kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kernels.step_kernels import HeadNorm, Order


class WholeSequence:
    """A `FusedAttentionStep` of as many tokens as are given, the first at position 0."""

    def attend_fused(
        self,
        layer_index: int,
        qkv: Tensor,
        rotation: Tensor,
        *,
        num_heads: int,
        scale: float,
        window: int | None,
        head_norm: HeadNorm | None,
        order: Order | None,
    ) -> Tensor:
        num_tokens, head_dim = qkv.shape[0], rotation.shape[-1]
        heads = qkv.view(num_tokens, -1, head_dim)
        kv_heads = (heads.shape[1] - num_heads) // 2
        query, key, value = heads.split((num_heads, kv_heads, kv_heads), dim=1)
        if head_norm is not None:
            query = functional.rms_norm(query, (head_dim,), head_norm.query, head_norm.eps)
            key = functional.rms_norm(key, (head_dim,), head_norm.key, head_norm.eps)
        cos, sin = rotation[:num_tokens].unsqueeze(2).unbind(1)
        turned = [x * cos + x.roll(head_dim // 2, -1) * sin for x in (query, key)]
        attended = self.attend(
            layer_index,
            turned[0],
            torch.stack((turned[1], value), dim=1),
            scale=scale,
            window=window,
        ).flatten(1)
        return attended if order is None else attended[:, order.gather]

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        age = torch.arange(len(query))[:, None] - torch.arange(len(query))
        is_seen = (age >= 0) & (age < (window or len(query)))
        keys, values = key_value.unbind(1)
        attended = functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=is_seen,
            scale=scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1)


class PlainKernels:
    """What a layer needs of `StepKernels` beside attention."""

    name = "plain"

    def add_norm(
        self,
        residual: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        eps: float,
        order: Order | None,
    ) -> Tensor:
        if delta is not None:
            residual.add_(delta)
        normed = functional.rms_norm(residual, weight.shape, weight, eps)
        return normed if order is None else normed[:, order.gather]

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return functional.silu(gate) * up
