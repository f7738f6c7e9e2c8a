"""Decoder layers of the Llama family, all of them in one call; no pieces of prompts.

A call of PyTorch takes some µs and each tensor that it is given some tenths, which thirty layers of
fifteen operations make the larger part of a small model's step. What does not change from step to
step is told once, as a table of addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from native.attention import HEAD_DIMS
from native.int4 import Int4Weight
from native.int8 import Int8Weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from native.attention import Sequences
    from native.rows import HeadNorm

Weight: TypeAlias = Int4Weight | Int8Weight

KEPT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One layer's weights, and what of it they do not say."""

    attention_norm: Tensor  # [hidden] float32
    qkv: Weight  # queries, keys and values, their outputs side by side
    head_norm: HeadNorm | None
    output: Weight
    mlp_norm: Tensor  # [hidden] float32
    gate_up: Weight  # gate first
    down: Weight
    eps: float  # of both norms
    num_heads: int
    scale: float  # of attention
    window: int | None  # how many tokens back a row sees, itself included; None for all


class LlamaLayers:
    """Layers that are run at once, with the keys and values of each.

    It keeps the tensors whose addresses it has, so that none is let go before it.
    """

    def __init__(self, layers: Sequence[LlamaLayer], kv_layers: Sequence[Tensor]) -> None:
        """kv_layers: [num_slots, 2, kv_heads, head_dim] each, all float32, bfloat16 or float16.

        Raises ValueError where layers differ in shape, or in what is told of all at once.
        """
        self._kept = (tuple(layers), tuple(kv_layers))
        first, cache = layers[0], kv_layers[0]
        self._num_slots, _, self._num_kv_heads, self._head_dim = cache.shape
        self._kept_type = cache.dtype
        self._num_heads, self._scale, self._eps = first.num_heads, first.scale, first.eps
        self._head_eps = 0.0 if first.head_norm is None else first.head_norm.eps
        hidden, inner = first.attention_norm.numel(), first.gate_up.out_features // 2
        for layer, kv_layer in zip(layers, kv_layers, strict=True):
            self._check(layer, kv_layer, hidden, inner)
        rows = [_entry(layer, kv) for layer, kv in zip(layers, kv_layers, strict=True)]
        self._table = torch.tensor(rows, dtype=torch.int64)

    def run(
        self,
        residual: Tensor,
        rotation: Tensor,
        slots: Tensor,
        seen: Sequences,
        *,
        num_layers: int | None = None,
        are_many: bool = False,
        has_tiles: bool = False,
    ) -> None:
        """Add to the residual [rows, hidden] float32 in place, and store keys and values.

        rotation, slots: as in `native.rows.rotate_and_store`; seen: as in
        `native.attention.attend_rows`. num_layers: the first so many alone; None for all.
        are_many: multiply int4 weights by `native.int4.multiply_many`, not `multiply`; has_tiles:
        as there.
        """
        torch.ops.tetrad.llama_layers.default(
            residual,
            rotation,
            seen.positions,
            slots,
            seen.tables,
            seen.rows,
            seen.block_size,
            self._table,
            self._table.shape[0] if num_layers is None else num_layers,
            self._num_heads,
            self._num_kv_heads,
            self._head_dim,
            self._num_slots,
            self._kept_type,
            self._eps,
            self._head_eps,
            self._scale,
            are_many,
            has_tiles,
        )

    def _check(self, layer: LlamaLayer, kv_layer: Tensor, hidden: int, inner: int) -> None:
        queries, keys = self._num_heads * self._head_dim, self._num_kv_heads * self._head_dim
        shapes = {
            "queries, keys and values": (layer.qkv, hidden, queries + 2 * keys),
            "output": (layer.output, queries, hidden),
            "gate and up": (layer.gate_up, hidden, 2 * inner),
            "down": (layer.down, inner, hidden),
        }
        for name, (weight, num_inputs, num_outputs) in shapes.items():
            if (weight.in_features, weight.out_features) != (num_inputs, num_outputs):
                raise ValueError(
                    f"the product of {name} is {weight.in_features} → {weight.out_features},"
                    f" {num_inputs} → {num_outputs} would fit"
                )
        norm = layer.head_norm
        self._check_norms(layer, hidden)
        told = (layer.num_heads, layer.scale, layer.eps, 0.0 if norm is None else norm.eps)
        of_first = (self._num_heads, self._scale, self._eps, self._head_eps)
        if told != of_first:
            raise ValueError(f"layers differ in heads, scale or eps: {told} and {of_first}")
        kept = (self._num_slots, 2, self._num_kv_heads, self._head_dim)
        if kv_layer.shape != kept or kv_layer.dtype != self._kept_type:
            raise ValueError(f"layers' keys and values differ in shape or type from {kept}")
        if kv_layer.device.type != "cpu":
            raise ValueError(f"keys and values are on {kv_layer.device}, not on a CPU")
        if self._kept_type not in KEPT_TYPES or not kv_layer.is_contiguous():
            raise ValueError(f"keys and values are kept as {self._kept_type}, or not in one piece")
        if self._head_dim not in HEAD_DIMS:
            raise ValueError(f"heads are {self._head_dim} wide, and may be {HEAD_DIMS}")

    def _check_norms(self, layer: LlamaLayer, hidden: int) -> None:
        norms = [(layer.attention_norm, hidden), (layer.mlp_norm, hidden)]
        if layer.head_norm is not None:
            norms += [
                (each, self._head_dim) for each in (layer.head_norm.query, layer.head_norm.key)
            ]
        for weight, width in norms:
            if weight.shape != (width,):
                raise ValueError(f"a norm of {tuple(weight.shape)} stands over rows of {width}")


def _entry(layer: LlamaLayer, kv_layer: Tensor) -> list[int]:
    """Give a layer's row of the table, in the order of `LayerEntry` in llama_layers.cpp."""
    norm = layer.head_norm
    query_norm, key_norm = (None, None) if norm is None else (norm.query, norm.key)
    norms = (layer.attention_norm, layer.mlp_norm, query_norm, key_norm)
    weights = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return [
        *(_address(tensor, torch.float32) for tensor in norms),
        kv_layer.data_ptr(),
        layer.window or 0,
        *(number for weight in weights for number in _linear_entry(weight)),
    ]


def _linear_entry(weight: Weight) -> list[int]:
    weight.check()
    sizes = [weight.in_features, weight.out_features]
    bias = _address(weight.bias, torch.float32)
    if isinstance(weight, Int8Weight):
        scales = (_address(each, torch.float32) for each in (weight.scales, weight.offsets))
        return [_address(weight.codes, torch.int8), *scales, bias, 0, *sizes, *sizes[1:], 1, 0]
    return [
        _address(weight.packed, torch.uint8),
        _address(weight.scales_and_minima, torch.bfloat16),
        0,
        bias,
        _address(weight.input_permutation, torch.int64),
        *sizes,
        weight.packed.shape[0],
        weight.num_groups,
        weight.num_planes,
    ]


def _address(tensor: Tensor | None, dtype: torch.dtype) -> int:
    if tensor is None:
        return 0
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"a tensor of {dtype} in one piece on the CPU is wanted, not {tensor}")
    return tensor.data_ptr()
