"""What the kernels in C++ compute, in plain PyTorch: exactly, but for what is meant to be rounded.

Each function has the name and the arguments of the one in `native` that it stands for. Sums are
float64, taken row by row, so that rows have nothing to do with each other. `use_in_place` lets
everything that calls `native` find them, where the kernels cannot be used or are not wanted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

import native.attention
import native.int4
import native.int8
import native.library
import native.llama_layers
import native.rows
from native.attention import Sequences
from native.int8 import Int8Weight

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import pytest
    from torch import Tensor

    from native.int4 import Int4Weight
    from native.llama_layers import LlamaLayer, Weight
    from native.rows import HeadNorm

BLOCK = 64  # outputs of a block of packed codes
MIDDLE_CODE = 8


def add_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    if delta is not None:
        residual += delta.float()
    return _norm(residual, weight, eps).to(dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.double().chunk(2, dim=1)
    return (functional.silu(gate) * up).float().to(gate_up.dtype)


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
    _, _, num_kv_heads, head_dim = kv_layer.shape
    heads = qkv.float().view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if head_norm is not None:
        query = _norm(query, head_norm.query, head_norm.eps)
        key = _norm(key, head_norm.key, head_norm.eps)
    cos, sin = rotation[positions].double().unsqueeze(2).unbind(1)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    kv_layer[slots] = torch.stack((key, value), dim=1).to(kv_layer.dtype)
    return query


def attend_rows(
    query: Tensor, kv_layer: Tensor, seen: Sequences, *, scale: float, window: int | None
) -> Tensor:
    attended = [
        _attend(query[row], _seen(kv_layer, seen, row, window), scale)
        for row in range(query.shape[0])
    ]
    return _stacked(attended, query).float()


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
    seen = Sequences(tables, *rows_of_pieces(pieces), block_size)
    rounded = query.to(torch.bfloat16)
    attended = [
        _attend(rounded[row], _seen(kv_layer, seen, row, window).to(torch.bfloat16), scale)
        for row in range(query.shape[0])
    ]
    return _stacked(attended, query).float().to(dtype)


def rows_of_pieces(pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Give each row's sequence and its position."""
    sequences, positions = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for num_rows, start, sequence in pieces.tolist():
        sequences.append(torch.full((num_rows,), sequence))
        positions.append(torch.arange(start, start + num_rows))
    return torch.cat(sequences), torch.cat(positions)


def multiply(weight: Int4Weight, x: Tensor) -> Tensor:
    exact = exact_weight(weight)[:, : weight.out_features]
    rows = [row @ exact for row in x.to(torch.bfloat16).double()]
    product = torch.stack(rows) if rows else exact.new_empty(0, weight.out_features)
    if weight.bias is not None:
        product = product + weight.bias.double()
    return product.float().to(x.dtype)


def multiply_many(weight: Int4Weight, x: Tensor, *, has_tiles: bool = False) -> Tensor:
    rounded = unpack(weight)[:, : weight.out_features].double()
    rows = [row @ rounded for row in x.to(torch.bfloat16).double()]
    product = torch.stack(rows) if rows else rounded.new_empty(0, weight.out_features)
    if weight.bias is not None:
        product = product + weight.bias.double()
    return product.float().to(x.dtype)


def multiply_int8(weight: Int8Weight, x: Tensor) -> Tensor:
    levels = weight.codes.double()
    if weight.offsets is not None:
        levels += weight.offsets.double()[:, None]
    exact = (levels * weight.scales.double()[:, None]).t()
    product = x.to(torch.bfloat16).double() @ exact
    if weight.bias is not None:
        product = product + weight.bias.double()
    return product.float().to(x.dtype)


def magnitude(weight: Int4Weight, x: Tensor) -> Tensor:
    """Sum the sizes of all that a product adds up, which bounds how far it may be off."""
    planes = codes_of(weight.packed).double().sub_(MIDDLE_CODE).abs_().chunk(weight.num_planes)
    scales, minima = weight.scales_and_minima.double().abs().unbind(-1)
    sizes = torch.cat([_by_group(torch.cat(planes), scales, minima)]).chunk(weight.num_planes)
    total = x.to(torch.bfloat16).double().abs() @ sum(sizes[1:], sizes[0])
    return total[:, : weight.out_features].float()


def unpack(weight: Int4Weight) -> Tensor:
    # Exact in float64: levels of 8 bits, and scales and minima of as many.
    return exact_weight(weight).to(torch.bfloat16)


def exact_weight(weight: Int4Weight) -> Tensor:
    """Give the weight as float64 [in, padded out]."""
    planes = codes_of(weight.packed).double().sub_(MIDDLE_CODE).chunk(weight.num_planes)
    scales, minima = weight.scales_and_minima.double().unbind(-1)
    by_plane = [
        _by_group(plane, scale, minimum)
        for plane, scale, minimum in zip(
            planes, scales.chunk(weight.num_planes), minima.chunk(weight.num_planes), strict=True
        )
    ]
    return sum(by_plane[1:], by_plane[0])


def pack(codes: Tensor) -> Tensor:
    """Pack codes [padded out, in], whole blocks of outputs, as PyTorch does with AVX-512."""
    num_outputs, num_inputs = codes.shape
    low, high = (
        codes.to(torch.uint8)
        .view(num_outputs // BLOCK, 2, BLOCK // 2, num_inputs)
        .transpose(-1, -2)
        .unbind(1)
    )
    return (low | high << 4).contiguous().view(num_outputs, num_inputs // 2)


def codes_of(packed: Tensor) -> Tensor:
    """Undo `pack`, but for the order: uint8 [in, padded out]."""
    num_outputs, half = packed.shape
    by_block = packed.view(num_outputs // BLOCK, half * 2, BLOCK // 2)
    return torch.cat((by_block & 15, by_block >> 4), dim=-1).transpose(0, 1).flatten(1)


class LlamaLayers:
    """Layers one operation at a time, by the functions above."""

    def __init__(self, layers: SequenceOf[LlamaLayer], kv_layers: SequenceOf[Tensor]) -> None:
        self._layers = list(zip(layers, kv_layers, strict=True))

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
        multiply_by = partial(_permuted, are_many=are_many)
        for layer, kv_layer in self._layers[:num_layers]:
            normed = add_norm(residual, None, layer.attention_norm, layer.eps, torch.float32)
            query = rotate_and_store(
                multiply_by(layer.qkv, normed),
                rotation,
                seen.positions,
                slots,
                kv_layer,
                num_heads=layer.num_heads,
                head_norm=layer.head_norm,
            )
            attended = attend_rows(query, kv_layer, seen, scale=layer.scale, window=layer.window)
            delta = multiply_by(layer.output, attended)
            normed = add_norm(residual, delta, layer.mlp_norm, layer.eps, torch.float32)
            residual += multiply_by(layer.down, silu_mul(multiply_by(layer.gate_up, normed)))


def use_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything that calls `native` find these, and be told that it can be used."""
    for module, names in {
        native.rows: ("add_norm", "silu_mul", "rotate_and_store"),
        native.attention: ("attend_rows", "attend_pieces"),
        native.int4: ("multiply", "multiply_many", "unpack"),
        native.llama_layers: ("LlamaLayers",),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, globals()[name])
    monkeypatch.setattr(native.int4, "may_use_tiles", lambda: False)
    monkeypatch.setattr(native.int8, "multiply", multiply_int8)
    monkeypatch.setattr(native.library, "why_not", lambda: None)
    monkeypatch.setattr(native.library, "is_loaded", lambda: True)


def _permuted(weight: Weight, x: Tensor, *, are_many: bool = False) -> Tensor:
    if isinstance(weight, Int8Weight):
        return multiply_int8(weight, x)
    x = x if weight.input_permutation is None else x[:, weight.input_permutation]
    return multiply_many(weight, x) if are_many else multiply(weight, x)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = x.double()
    factor = (exact.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (exact * factor * weight.double()).float()


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    exact = heads.double()
    return (exact * cos + exact.roll(exact.shape[-1] // 2, -1) * sin).float()


def _seen(kv_layer: Tensor, seen: Sequences, row: int, window: int | None) -> Tensor:
    """Give what a row sees, itself last: [tokens, 2, kv_heads, head_dim]."""
    stop = int(seen.positions[row]) + 1
    tokens = torch.arange(0 if window is None else max(0, stop - window), stop)
    blocks = seen.tables[seen.rows[row], tokens // seen.block_size]
    return kv_layer[blocks * seen.block_size + tokens % seen.block_size]


def _attend(query: Tensor, seen: Tensor, scale: float) -> Tensor:
    """query: [heads, head_dim]; seen: [tokens, 2, kv_heads, head_dim]; [heads * head_dim]."""
    num_kv_heads, head_dim = seen.shape[2:]
    keys, values = seen.double().permute(1, 2, 0, 3)  # [kv_heads, tokens, head_dim] each
    by_key = query.double().view(num_kv_heads, -1, head_dim)
    weights = (by_key @ keys.transpose(1, 2) * scale).softmax(-1)
    return (weights @ values).flatten()


def _stacked(rows: SequenceOf[Tensor], query: Tensor) -> Tensor:
    width = query.shape[1] * query.shape[2]
    return torch.stack(list(rows)) if rows else torch.empty(0, width, dtype=torch.float64)


def _by_group(levels: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """levels: [in, out]; scales, minima: [groups, out]."""
    grouped = levels.view(scales.shape[0], -1, levels.shape[1])
    return (grouped * scales[:, None] + minima[:, None]).view_as(levels)
