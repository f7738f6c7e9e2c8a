"""Attention of a step on a GPU: few launches, whatever rows the step has.

Rows lie as `attention.paged` describes: first one for each decoding sequence, then the chunks.
Decoding rows read their blocks in place (`StepKernels.decode_attention`), with nothing gathered or
padded; chunks go through `attention.prompt`. All new keys and values are stored first.

A step of decoding rows only is made of the device's tensors alone, so that a CUDA graph holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.attention.prompt import attend_to_chunks
from engine.kernels.step_kernels import DecodeRows

if TYPE_CHECKING:
    from torch import Tensor

    from engine.attention.kv_cache import KVCache
    from engine.attention.prompt import ChunkGroup
    from engine.kernels.step_kernels import HeadNorm, Order, StepKernels


@dataclass(frozen=True, slots=True)
class GpuStep:
    """One step's view of the cache; the `FusedAttentionStep` of a GPU."""

    cache: KVCache
    kernels: StepKernels
    positions: Tensor  # [num_tokens] int64
    slot_mapping: Tensor  # [num_tokens] int64: where each token's keys and values go
    decodes: DecodeRows | None  # the first rows; None where none decodes
    chunks: tuple[ChunkGroup, ...] = ()  # the rows after them
    has_flash: bool = True  # chunks may be attended to by flash attention, where it takes them

    @classmethod
    def of_decodes(
        cls, cache: KVCache, kernels: StepKernels, slots: Tensor, positions: Tensor, tables: Tensor
    ) -> GpuStep:
        """Make a step of decoding rows; tensors as in `DecodeRows`."""
        size = cache.block_size
        blocks = tables[slots, positions // size]
        return cls(
            cache=cache,
            kernels=kernels,
            positions=positions,
            slot_mapping=blocks * size + positions % size,
            decodes=DecodeRows(slots, positions, tables, size),
        )

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
        # Transformers' layers give a transposed view, which not everybody who asks can read.
        attended = self._attend(layer_index, query.contiguous(), scale, window, None)
        return attended.view(query.shape)

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
        """Rotate, store, then attend; see `FusedAttentionStep`."""
        query = self.kernels.rotate_and_store(
            qkv,
            rotation,
            self.positions,
            self.slot_mapping,
            self.cache.layer(layer_index),
            num_heads=num_heads,
            head_norm=head_norm,
        )
        return self._attend(layer_index, query, scale, window, order)

    def _attend(
        self,
        layer_index: int,
        query: Tensor,
        scale: float,
        window: int | None,
        order: Order | None,
    ) -> Tensor:
        """Attend to what is stored; [num_tokens, heads * head_dim], columns in the order."""
        parts: list[Tensor] = []
        if self.decodes is not None:
            parts.append(
                self.kernels.decode_attention(
                    query[: self.decodes.slots.shape[0]],
                    self.cache.layer(layer_index),
                    self.decodes,
                    scale=scale,
                    window=window,
                    order=order,
                )
            )
        for group in self.chunks:
            attended = attend_to_chunks(
                self.cache,
                layer_index,
                query[group.rows],
                group,
                scale=scale,
                window=window,
                has_flash=self.has_flash,
            ).flatten(1)
            parts.append(attended if order is None else attended.index_select(1, order.gather))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
