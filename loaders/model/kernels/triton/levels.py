"""What both Triton kernels do to bytes: fields to codes, codes less their zero point.

Holds pieces of kernels and what they are specialised on; no kernel of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from loaders.model.kernels.triton.pack import PackedPlanes, Zeros
    from loaders.quantization.plane_layout import PlaneLayout

TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
# Triton's interpreter multiplies and adds bfloat16 as bit patterns.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# Constants of the kernels: how zero points are kept, and what always lies in one group.
_ZEROS: dict[Zeros, int] = {"common": 0, "whole": 1, "float": 2}
SCALED_BY_BLOCK, SCALED_BY_SLICE, SCALED_BY_INPUT = 0, 1, 2


def constants_of(planes: PackedPlanes, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a kernel is specialised on for such a weight."""
    group = 0 if planes.num_groups == 1 else planes.group_size
    return plane_constants(planes.layout, group, planes.zeros_kind, planes.common_zero, dtype)


def plane_constants(
    layout: PlaneLayout, group: int, zeros: Zeros, common_zero: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Name the constants as the kernels do; group: its inputs, 0 where there is one for all."""
    scaled = SCALED_BY_INPUT
    if group % layout.slice_inputs == 0:
        scaled = SCALED_BY_SLICE
    if group % layout.block_inputs == 0:
        scaled = SCALED_BY_BLOCK
    return {
        "low_bits": layout.widths[0],
        "high_bits": layout.widths[1] if len(layout.widths) > 1 else 0,
        "slice_size": layout.slice_inputs,
        "group": group,
        "zeros_kind": _ZEROS[zeros],
        "common_zero": common_zero,
        "scaled": scaled,
        "dtype": TRITON_DTYPES[dtype],
        "interpreted": INTERPRETED,
    }


@triton.jit
def counted_number(
    codes: tl.tensor, dtype: tl.constexpr, bits: tl.constexpr, interpreted: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Widen codes (uint8), plus a constant that `less_zero` takes away again.

    A code becomes the last bits of a power of two, whose spacing is one: 1024 in float16, 128 in
    bfloat16, which has room for 6 bits. That is one OR where a conversion takes several steps, and
    exact, as is the difference of two such numbers.
    """
    if dtype == tl.float16:
        number = (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
    elif (dtype == tl.bfloat16) and (bits <= 6):
        number = (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
    else:
        number = codes.to(tl.float32)
    if interpreted:
        number = number.to(tl.float32)
    return number


@triton.jit
def constant_of(
    dtype: tl.constexpr, bits: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What `counted_number` adds to a code."""
    if dtype == tl.float16:
        return 1024.0
    elif (dtype == tl.bfloat16) and (bits <= 6):  # noqa: RET505
        return 128.0
    else:
        return 0.0


@triton.jit
def codes_of(
    low: tl.tensor, high: tl.tensor, place: tl.constexpr, index: tl.constexpr,
    low_bits: tl.constexpr, high_bits: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Join the fields of one slice: of `low` that at place, of `high` that of the slice."""
    codes = low
    if low_bits < 8:
        codes = (low >> (place * low_bits)) & ((1 << low_bits) - 1)
    if high_bits > 0:
        upper = (high >> (index * high_bits)) & ((1 << high_bits) - 1)
        codes = codes | (upper << low_bits)
    return codes


@triton.jit
def less_zero(
    codes: tl.tensor, zeros: tl.tensor, zeros_kind: tl.constexpr, common_zero: tl.constexpr,
    dtype: tl.constexpr, bits: tl.constexpr, interpreted: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Codes less their zero points: exact where these are whole, else rounded to dtype once."""
    if zeros_kind == 2:
        levels = codes.to(tl.float32) - zeros.to(tl.float32)
    else:
        number = counted_number(codes, dtype, bits, interpreted)
        if zeros_kind == 1:
            levels = number - counted_number(zeros, dtype, bits, interpreted)
        else:
            levels = number - (constant_of(dtype, bits) + common_zero)
    return levels


@triton.jit
def operand(
    levels: tl.tensor, dtype: tl.constexpr, interpreted: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Round to the dtype of activations; the interpreter multiplies what it comes to in float32."""
    rounded = levels.to(dtype)
    if interpreted:
        rounded = rounded.to(tl.float32)
    return rounded


@triton.jit
def group_values(
    table: tl.tensor, inputs: tl.tensor, outs: tl.tensor, padded_out: tl.tensor,
    num_groups: tl.tensor, group: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Read the scales or zero points of inputs: one number, or a column of them.

    Gives [1, outputs] or [inputs, outputs]. Inputs that pad a block read the last group.
    """
    if group == 0:
        places = outs[None, :]
    else:
        own = tl.minimum(inputs // group, num_groups - 1)
        places = own.to(tl.int64) * padded_out + outs[None, :]
    return tl.load(table + places)
