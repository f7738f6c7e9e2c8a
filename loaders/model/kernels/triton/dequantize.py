"""Writes a piece of a packed weight out for cuBLAS, for more rows than a program's tile holds.

A weight is dequantised into a scratch buffer, some outputs at a time, and each piece multiplied by
all rows. It is written by input, [in, outputs of the piece], as it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from loaders.model.kernels import launches
from loaders.model.kernels.triton.levels import codes_of, constants_of, group_values, less_zero
from loaders.model.kernels.triton.pack import dequantized
from loaders.model.kernels.triton.workspace import on_device
from loaders.quantization.plane_layout import OUTPUT_MULTIPLE, piece_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.model.kernels.triton.pack import PackedPlanes
    from loaders.model.kernels.triton.workspace import Workspace

OPTIONS = {"num_warps": 4, "num_stages": 1}


def reference(planes: PackedPlanes, start: int, num_outputs: int, dtype: torch.dtype) -> Tensor:
    """Compute what the launcher writes, [in, outputs of the piece], in float32."""
    return dequantized(planes)[:, start : start + num_outputs].to(dtype)


@triton.jit
def dequantize_kernel(
    low: tl.tensor, high: tl.tensor, scales: tl.tensor, zeros: tl.tensor, weight: tl.tensor,
    start: tl.tensor, num_outputs: tl.tensor, in_features: tl.tensor, padded_out: tl.tensor,
    num_groups: tl.tensor, low_bits: tl.constexpr, high_bits: tl.constexpr,
    slice_size: tl.constexpr, group: tl.constexpr, zeros_kind: tl.constexpr,
    common_zero: tl.constexpr, scaled: tl.constexpr, dtype: tl.constexpr,
    interpreted: tl.constexpr, out_tile: tl.constexpr,
) -> None:  # fmt: skip
    """Write one block of inputs of one tile of outputs."""
    num_slices: tl.constexpr = 8 // (high_bits if high_bits > 0 else low_bits)
    in_byte: tl.constexpr = 8 // low_bits
    # Blocks come first: there are more of them than the second dimension of a grid may have.
    block = tl.program_id(0)
    columns = tl.program_id(1) * out_tile + tl.arange(0, out_tile)
    outs = start + columns
    is_output = columns < num_outputs
    inputs = tl.arange(0, slice_size)
    places = inputs[:, None] * padded_out + outs[None, :]
    low_rows = low + (block * (num_slices // in_byte * slice_size)).to(tl.int64) * padded_out
    upper = 0
    if high_bits > 0:
        upper = tl.load(high + (block * slice_size).to(tl.int64) * padded_out + places)
    zero = 0
    for index in tl.static_range(num_slices):
        if index % in_byte == 0:
            lower = tl.load(low_rows + index // in_byte * slice_size * padded_out + places)
        begin = (block * num_slices + index) * slice_size
        own = begin + inputs
        at = own[:, None] if scaled == 2 else begin
        scale = group_values(scales, at, outs, padded_out, num_groups, group)
        if zeros_kind > 0:
            zero = group_values(zeros, at, outs, padded_out, num_groups, group)
        codes = codes_of(lower, upper, index % in_byte, index, low_bits, high_bits)
        level = less_zero(
            codes, zero, zeros_kind, common_zero, dtype, low_bits + high_bits, interpreted
        )
        value = level.to(tl.float32) * scale.to(tl.float32)
        written = weight + own.to(tl.int64)[:, None] * num_outputs + columns[None, :]
        is_weight = (own < in_features)[:, None] & is_output[None, :]
        tl.store(written, value.to(dtype), mask=is_weight)


def dequantize(planes: PackedPlanes, start: int, weight: Tensor) -> None:
    """Fill weight [in, outputs of the piece] with the outputs from `start` on."""
    num_outputs = weight.shape[1]
    launches.count("linear_dequantize")
    with on_device(weight.device):
        dequantize_kernel[(planes.num_blocks, -(-num_outputs // OUTPUT_MULTIPLE))](
            planes.low,
            planes.high,
            planes.scales,
            planes.zeros,
            weight,
            start,
            num_outputs,
            planes.in_features,
            planes.padded_out,
            planes.num_groups,
            **constants_of(planes, weight.dtype),
            out_tile=OUTPUT_MULTIPLE,
            **OPTIONS,
        )


def multiply(x: Tensor, planes: PackedPlanes, bias: Tensor | None, workspace: Workspace) -> Tensor:
    """Multiply any number of rows x [rows, in] in the planes' order: [rows, out] in x's dtype.

    bias: [out] float32. workspace: has room for a piece.
    """
    y = x.new_empty(x.shape[0], planes.out_features)
    rounded = None if bias is None else bias.to(x.dtype)
    at_once = piece_outputs(planes.in_features, planes.padded_out, x.dtype.itemsize)
    for start in range(0, planes.out_features, at_once):
        stop = min(start + at_once, planes.out_features)
        weight = workspace.weight(planes.in_features, stop - start, x.dtype)
        dequantize(planes, start, weight)
        if rounded is None:
            torch.mm(x, weight, out=y[:, start:stop])
        else:
            torch.addmm(rounded[start:stop], x, weight, out=y[:, start:stop])
    return y
