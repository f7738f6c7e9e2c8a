"""Weights in PyTorch's int4 blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from native.int4 import Int4Weight
from native.int8 import Int8Weight
from tests.native.reference import BLOCK, MIDDLE_CODE, pack

if TYPE_CHECKING:
    from torch import Tensor


def random_weight(
    in_features: int,
    group_size: int,
    out_features: int,
    *,
    num_planes: int = 1,
    has_bias: bool = False,
    is_sorted: bool = False,
) -> Int4Weight:
    """is_sorted: inputs are wanted in an order of the weight's own."""
    padded = out_features + -out_features % BLOCK
    codes = torch.randint(16, (padded, in_features * num_planes))
    num_groups = in_features // group_size
    scales = (torch.rand(num_groups, padded) + 0.5) / (in_features**0.5 * 8 ** (2 * num_planes - 1))
    scales = scales.bfloat16()
    own = torch.stack((scales, (torch.randn(num_groups, padded) * scales).bfloat16()), dim=-1)
    of_upper = torch.stack((scales * 16, torch.zeros_like(scales)), dim=-1)
    return Int4Weight(
        packed=pack(codes),
        scales_and_minima=own if num_planes == 1 else torch.cat((of_upper, own)),
        out_features=out_features,
        num_planes=num_planes,
        bias=torch.randn(out_features) if has_bias else None,
        input_permutation=torch.randperm(in_features) if is_sorted else None,
    )


def random_int8_weight(
    in_features: int,
    out_features: int,
    *,
    has_offsets: bool = False,
    has_bias: bool = False,
    size: float = 1.0,
) -> Int8Weight:
    """size: of the largest scale."""
    return Int8Weight(
        codes=torch.randint(-128, 128, (out_features, in_features), dtype=torch.int8),
        scales=(torch.rand(out_features) * 0.9 + 0.1) * size,
        offsets=torch.randn(out_features) * 3 if has_offsets else None,
        bias=torch.randn(out_features) if has_bias else None,
    )


def packed_weight(
    weight: Tensor, bias: Tensor | None = None, *, group_size: int = 32
) -> Int4Weight:
    """Round a weight [out, in] to 4 bits in groups."""
    out_features = weight.shape[0]
    padded = pad(weight, (0, 0, 0, -out_features % BLOCK))
    groups = padded.view(padded.shape[0], -1, group_size)
    low, high = groups.aminmax(dim=-1)
    scales = ((high - low) / 15).clamp(min=2**-20).bfloat16().float()
    minima = (low + MIDDLE_CODE * scales).bfloat16().float()
    codes = ((groups - minima[..., None]) / scales[..., None] + MIDDLE_CODE).round().clamp(0, 15)
    return Int4Weight(
        packed=pack(codes.view_as(padded)),
        scales_and_minima=torch.stack((scales, minima), dim=-1)
        .transpose(0, 1)
        .bfloat16()
        .contiguous(),
        out_features=out_features,
        bias=bias,
    )
