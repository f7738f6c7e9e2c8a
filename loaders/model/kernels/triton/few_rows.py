"""Few rows of activations times a packed weight, in one launch.

A program makes one tile of outputs over a part of the inputs; codes less their zero points are
multiplied on tensor cores and sums of whole groups scaled in float32. Where outputs are too few to
fill a GPU, inputs are split: each program leaves its sums in a scratch buffer, and the last one to
arrive at a tile adds them in their order, so the result does not depend on who that is. A second
kernel would do without locks, but each launch costs a microsecond or two, and a token takes over a
hundred products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from loaders.model.kernels import launches
from loaders.model.kernels.triton.levels import (
    SCALED_BY_INPUT,
    codes_of,
    constants_of,
    group_values,
    less_zero,
    operand,
)
from loaders.model.kernels.triton.pack import dequantized
from loaders.model.kernels.triton.workspace import on_device
from loaders.quantization.plane_layout import OUTPUT_MULTIPLE, ROW_TILES

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.model.kernels.triton.pack import PackedPlanes
    from loaders.model.kernels.triton.workspace import Workspace
    from loaders.quantization.plane_layout import Split

# They share a tile, and with it the order of every sum.
NUM_INVARIANT_ROWS = ROW_TILES[0]
# Blocks of inputs under way to shared memory; scales that are looked up for each input are copied
# ahead as well, 16 KB a block.
_STAGES, _STAGES_BY_INPUT = 3, 2
# So many that three programs of four warps fit a multiprocessor. Without a limit ptxas took fewer,
# 64 to 128, and spilled 8 to 24 bytes a thread for six kinds of layers (Triton 3.7.1).
_MAX_REGISTERS = 168


def options(rows: int, scaled: int) -> dict[str, int]:
    """Return how a kernel of a tile of rows is compiled."""
    stages = _STAGES_BY_INPUT if scaled == SCALED_BY_INPUT else _STAGES
    warps = 4 if rows == ROW_TILES[0] else 8
    return {"num_warps": warps, "num_stages": stages, "maxnreg": _MAX_REGISTERS}


def reference(x: Tensor, planes: PackedPlanes, bias: Tensor | None) -> Tensor:
    """Compute what the launcher gives, in float32."""
    product = x.float() @ dequantized(planes)
    return (product if bias is None else product + bias).to(x.dtype)


@triton.jit
def _block_product(
    sums: tl.tensor, x_rows: tl.tensor, has_row: tl.tensor, low: tl.tensor, high: tl.tensor,
    scales: tl.tensor, zeros: tl.tensor, block: tl.tensor, outs: tl.tensor,
    in_features: tl.tensor, padded_out: tl.tensor, num_groups: tl.tensor, low_bits: tl.constexpr,
    high_bits: tl.constexpr, slice_size: tl.constexpr, group: tl.constexpr,
    zeros_kind: tl.constexpr, common_zero: tl.constexpr, scaled: tl.constexpr,
    dtype: tl.constexpr, interpreted: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add one block's products to the sums."""
    num_slices: tl.constexpr = 8 // (high_bits if high_bits > 0 else low_bits)
    in_byte: tl.constexpr = 8 // low_bits
    precision: tl.constexpr = "ieee" if dtype == tl.float32 else "tf32"
    inputs = tl.arange(0, slice_size)
    # Within a block places are small; where a block begins may be past 2^31.
    places = inputs[:, None] * padded_out + outs[None, :]
    start = block * (slice_size * num_slices)
    low_rows = low + (block * (num_slices // in_byte * slice_size)).to(tl.int64) * padded_out
    upper = 0
    if high_bits > 0:
        upper = tl.load(high + (block * slice_size).to(tl.int64) * padded_out + places)
    block_sums = sums if scaled == 2 else tl.zeros_like(sums)
    zero = 0
    if scaled == 0:
        scale = group_values(scales, start, outs, padded_out, num_groups, group)
        if zeros_kind > 0:
            zero = group_values(zeros, start, outs, padded_out, num_groups, group)
    for index in tl.static_range(num_slices):
        if index % in_byte == 0:
            lower = tl.load(low_rows + index // in_byte * slice_size * padded_out + places)
        begin = start + index * slice_size
        own = begin + inputs
        is_input = has_row[:, None] & (own < in_features)[None, :]
        a = operand(tl.load(x_rows + own[None, :], mask=is_input, other=0.0), dtype, interpreted)
        if scaled > 0:
            at = begin if scaled == 1 else own[:, None]
            scale = group_values(scales, at, outs, padded_out, num_groups, group)
            if zeros_kind > 0:
                zero = group_values(zeros, at, outs, padded_out, num_groups, group)
        codes = codes_of(lower, upper, index % in_byte, index, low_bits, high_bits)
        level = less_zero(
            codes, zero, zeros_kind, common_zero, dtype, low_bits + high_bits, interpreted
        )
        if scaled == 2:
            level = level.to(tl.float32) * scale.to(tl.float32)
        weight = operand(level, dtype, interpreted)
        if scaled == 1:
            product = tl.dot(a, weight, input_precision=precision)
            block_sums += product * scale.to(tl.float32)
        else:
            block_sums = tl.dot(a, weight, block_sums, input_precision=precision)
    if scaled == 0:
        sums += block_sums * scale.to(tl.float32)
    elif scaled == 1:
        sums += block_sums
    else:
        sums = block_sums
    return sums


# One binary for every number of rows that shares a tile, and for layers of any length.
@triton.jit(do_not_specialize=["num_rows", "num_blocks", "part_blocks", "num_groups"])
def few_rows_kernel(
    x: tl.tensor, low: tl.tensor, high: tl.tensor, scales: tl.tensor, zeros: tl.tensor,
    bias: tl.tensor, y: tl.tensor, partials: tl.tensor, locks: tl.tensor, num_rows: tl.tensor,
    in_features: tl.tensor, out_features: tl.tensor, padded_out: tl.tensor, x_stride: tl.tensor,
    num_blocks: tl.tensor, part_blocks: tl.tensor, num_groups: tl.tensor, low_bits: tl.constexpr,
    high_bits: tl.constexpr, slice_size: tl.constexpr, group: tl.constexpr,
    zeros_kind: tl.constexpr, common_zero: tl.constexpr, scaled: tl.constexpr,
    dtype: tl.constexpr, interpreted: tl.constexpr, has_bias: tl.constexpr,
    row_tile: tl.constexpr, out_tile: tl.constexpr, num_parts: tl.constexpr,
) -> None:  # fmt: skip
    """Multiply one tile of rows by one of outputs, over one part of the inputs."""
    # Tiles of rows that meet the same weights run side by side.
    num_row_tiles = tl.cdiv(num_rows, row_tile)
    outs = tl.program_id(0) // num_row_tiles * out_tile + tl.arange(0, out_tile)
    rows = tl.program_id(0) % num_row_tiles * row_tile + tl.arange(0, row_tile)
    has_row = rows < num_rows
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    block = tl.program_id(1) * part_blocks
    num_own = tl.minimum(part_blocks, num_blocks - block)
    sums = tl.zeros((row_tile, out_tile), dtype=tl.float32)
    for _ in range(num_own):
        sums = _block_product(
            sums, x_rows, has_row, low, high, scales, zeros, block, outs, in_features, padded_out,
            num_groups, low_bits, high_bits, slice_size, group, zeros_kind, common_zero, scaled,
            dtype, interpreted,
        )  # fmt: skip
        block += 1

    if num_parts == 1:
        _store(sums, bias, y, rows, has_row, outs, out_features, has_bias, dtype)
    else:
        own = rows.to(tl.int64)[:, None] * padded_out + outs[None, :]
        size = num_rows.to(tl.int64) * padded_out
        tl.store(partials + tl.program_id(1) * size + own, sums, mask=has_row[:, None])
        tl.debug_barrier()  # all of this program's sums are stored before its arrival shows
        if tl.atomic_add(locks + tl.program_id(0), 1, sem="acq_rel", scope="gpu") == num_parts - 1:
            sums = tl.zeros((row_tile, out_tile), dtype=tl.float32)
            for part in tl.static_range(num_parts):
                # Past the first-level cache, which does not see other multiprocessors' stores.
                sums += tl.load(
                    partials + part * size + own, mask=has_row[:, None], cache_modifier=".cg"
                )
            _store(sums, bias, y, rows, has_row, outs, out_features, has_bias, dtype)
            tl.store(locks + tl.program_id(0), 0)


@triton.jit
def _store(
    sums: tl.tensor, bias: tl.tensor, y: tl.tensor, rows: tl.tensor, has_row: tl.tensor,
    outs: tl.tensor, out_features: tl.tensor, has_bias: tl.constexpr, dtype: tl.constexpr,
) -> None:  # fmt: skip
    is_output = outs < out_features
    if has_bias:
        sums += tl.load(bias + outs, mask=is_output, other=0.0)[None, :]
    places = rows.to(tl.int64)[:, None] * out_features + outs[None, :]
    tl.store(y + places, sums.to(dtype), mask=has_row[:, None] & is_output[None, :])


def multiply(
    x: Tensor, planes: PackedPlanes, bias: Tensor | None, split: Split, workspace: Workspace
) -> Tensor:
    """Multiply 1 to 64 rows x [rows, in] in the planes' order: [rows, out] in x's dtype.

    bias: [out] float32. workspace: has room for the split's sums.
    """
    num_rows = x.shape[0]
    if x.stride(1) != 1:
        x = x.contiguous()
    y = x.new_empty(num_rows, planes.out_features)
    constants = constants_of(planes, x.dtype)
    tile = next((tile for tile in ROW_TILES if num_rows <= tile), ROW_TILES[-1])
    num_tiles = -(-num_rows // tile) * (planes.padded_out // OUTPUT_MULTIPLE)
    launches.count("linear_few_rows")
    with on_device(x.device):
        few_rows_kernel[(num_tiles, split.num_parts)](
            x,
            planes.low,
            planes.high,
            planes.scales,
            planes.zeros,
            bias,
            y,
            workspace.partials,
            workspace.locks,
            num_rows,
            planes.in_features,
            planes.out_features,
            planes.padded_out,
            x.stride(0),
            planes.num_blocks,
            split.part_blocks,
            planes.num_groups,
            **constants,
            has_bias=bias is not None,
            row_tile=tile,
            out_tile=OUTPUT_MULTIPLE,
            num_parts=split.num_parts,
            **options(tile, constants["scaled"]),
        )
    return y
