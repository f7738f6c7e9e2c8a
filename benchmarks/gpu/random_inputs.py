"""Random inputs of the kernels, as steps give them: caches with holes, rows of ragged lengths."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from engine.attention.prompt import ChunkGroup
from engine.kernels.step_kernels import DecodeRows, HeadNorm, KVLayer, Order, StepKernels
from loaders.quantization.packed_tensors import GroupedWeight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ZeroPoints: TypeAlias = Literal["common", "whole", "float"]

BLOCK_SIZE = 16
MAX_POSITIONS = 8192


@dataclass(frozen=True, slots=True)
class Sizes:
    """A decoder layer's sizes."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int

    def __str__(self) -> str:
        return f"{self.hidden}/{self.num_heads}:{self.num_kv_heads}x{self.head_dim}"


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One layer's cache, and a decode step on it."""

    sizes: Sizes
    qkv: Tensor
    rotation: Tensor
    slots: Tensor
    rows: DecodeRows
    layer: KVLayer

    def rotate_and_store(self, kernels: StepKernels, head_norm: HeadNorm | None) -> Tensor:
        """Return the queries and all that the cache then holds of these rows, side by side."""
        layer = KVLayer(
            self.layer.values.clone(),
            None if self.layer.scales is None else self.layer.scales.clone(),
        )
        query = kernels.rotate_and_store(
            self.qkv,
            self.rotation,
            self.rows.positions,
            self.slots,
            layer,
            num_heads=self.sizes.num_heads,
            head_norm=head_norm,
        )
        stored = _read(layer, self.slots)
        return torch.cat((query.flatten(1).float(), stored.flatten(1)), dim=1)

    def decode_attention(self, kernels: StepKernels, window: int | None, order: Order) -> Tensor:
        """Attend with the queries as they are."""
        width = self.sizes.num_heads * self.sizes.head_dim
        query = self.qkv[:, :width].reshape(-1, self.sizes.num_heads, self.sizes.head_dim)
        return kernels.decode_attention(
            query,
            self.layer,
            self.rows,
            scale=self.sizes.head_dim**-0.5,
            window=window,
            order=order,
        )


def attention_inputs(
    sizes: Sizes, dtype: torch.dtype, lengths: Sequence[int], device: str, *, is_fp8: bool
) -> AttentionInputs:
    """Make a cache whose blocks lie in no order, of rows that see so many tokens each.

    What belongs to nobody holds NaN.
    """
    num_blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    total = sum(num_blocks)
    order = torch.randperm(total, device=device)
    tables = torch.full((len(lengths), max(num_blocks)), total, dtype=torch.int64, device=device)
    start = 0
    for row, count in enumerate(num_blocks):
        tables[row, :count] = order[start : start + count]
        start += count
    shape = ((total + 1) * BLOCK_SIZE, 2, sizes.num_kv_heads, sizes.head_dim)
    values, scales = torch.randn(shape, device=device).to(dtype), None
    if is_fp8:
        values = values.float().clamp(-440, 440).to(torch.float8_e4m3fn)
        scales = torch.rand(*shape[:-1], 1, device=device).to(torch.float16)
    positions = torch.tensor([length - 1 for length in lengths], device=device)
    blocks = tables.gather(1, (positions // BLOCK_SIZE)[:, None])[:, 0]
    slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
    if scales is None:
        _forget_unused(values, tables, positions)
    width = (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim
    angles = torch.rand(MAX_POSITIONS, sizes.head_dim // 2, device=device) * 6.28
    cos, sin = angles.cos(), angles.sin()
    rotation = torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)), dim=1)
    return AttentionInputs(
        sizes=sizes,
        qkv=torch.randn(len(lengths), width, device=device).to(dtype),
        rotation=rotation.to(dtype),
        slots=slots,
        rows=DecodeRows(torch.arange(len(lengths), device=device), positions, tables, BLOCK_SIZE),
        layer=KVLayer(values, scales),
    )


def _forget_unused(values: Tensor, tables: Tensor, positions: Tensor) -> None:
    """Put NaN behind each row's last token, within its last block."""
    for row, position in enumerate(positions.tolist()):
        block = int(tables[row, position // BLOCK_SIZE])
        first = block * BLOCK_SIZE + position % BLOCK_SIZE + 1
        values[first : (block + 1) * BLOCK_SIZE] = float("nan")


def _read(layer: KVLayer, slots: Tensor) -> Tensor:
    kept = layer.values.view(torch.uint8) if layer.scales is not None else layer.values
    found = kept.index_select(0, slots).view(layer.values.dtype).float()
    return found if layer.scales is None else found * layer.scales.index_select(0, slots).float()


def chunks(
    sizes: Sizes, dtype: torch.dtype, lengths: Sequence[tuple[int, int]], device: str
) -> tuple[Tensor, Tensor, ChunkGroup]:
    """Make chunks of prompts, each of (new rows, keys seen): queries, keys and values, and where.

    The queries are rows of a wider tensor, as a step cuts them out.
    """
    num_rows, num_keys = (tuple(numbers) for numbers in zip(*lengths, strict=True))
    width = sizes.num_heads * sizes.head_dim
    wide = torch.randn(sum(num_rows), 2 * width, device=device).to(dtype)
    query = wide[:, :width].view(-1, sizes.num_heads, sizes.head_dim)
    shape = (sum(num_keys), 2, sizes.num_kv_heads, sizes.head_dim)
    row_ends, key_ends = (
        torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=device)
        for counts in (num_rows, num_keys)
    )
    group = ChunkGroup(
        rows=slice(0, sum(num_rows)),
        slots=torch.arange(sum(num_keys), device=device),
        row_ends=row_ends,
        key_ends=key_ends,
        num_rows=num_rows,
        num_keys=num_keys,
    )
    return query, torch.randn(shape, device=device).to(dtype), group


def grouped_weight(
    ins: int,
    outs: int,
    bits: int,
    group_size: int,
    device: str,
    *,
    zeros: ZeroPoints = "common",
) -> GroupedWeight:
    """Make a weight whose products of rows near 1 are near 1; float16 holds all of its numbers."""
    size = ins if group_size == -1 else group_size
    shape = (-(-ins // size), outs)
    zero_points = torch.full(shape, 2.0 ** (bits - 1), device=device)
    if zeros == "whole":
        zero_points = torch.randint(2**bits, shape, device=device).float()
    elif zeros == "float":
        zero_points = ((2**bits - 1) * torch.rand(shape, device=device)).half().float()
    scales = (0.5 + torch.rand(shape, device=device)) * ins**-0.5 / 2 ** (bits - 1)
    return GroupedWeight(
        codes=torch.randint(2**bits, (outs, ins), device=device, dtype=torch.uint8),
        scales=scales.half().float(),
        zeros=zero_points,
        bits=bits,
        group_size=size,
        input_permutation=None,
    )
