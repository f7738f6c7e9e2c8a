"""Grouped weights of every kind that files hold, made up."""

from __future__ import annotations

import torch

from loaders.quantization.packed_tensors import GroupedWeight


def grouped_weight(
    bits: int,
    group_size: int,
    in_features: int,
    out_features: int,
    *,
    zeros: str = "whole",
    has_order: bool = False,
    seed: int = 0,
) -> GroupedWeight:
    """Draw one; group_size -1: all inputs. zeros: common, whole (from 0 to one above the largest
    code, as GPTQ's go) or float."""
    generator = torch.Generator().manual_seed(seed)
    size = in_features if group_size == -1 else group_size
    groups = -(-in_features // size)
    drawn = torch.rand(2, groups, out_features, generator=generator)
    zero_points = {
        "common": torch.full_like(drawn[1], 2.0 ** (bits - 1)),
        "whole": (drawn[1] * 2**bits).round(),
        "float": drawn[1] * 2**bits,
    }
    codes = torch.randint(
        2**bits, (out_features, in_features), generator=generator, dtype=torch.uint8
    )
    order = torch.randperm(in_features, generator=generator) if has_order else None
    scales = (drawn[0] * 0.02 + 0.001).half().float()
    return GroupedWeight(codes, scales, zero_points[zeros], bits, size, order)


def exact(weight: GroupedWeight) -> torch.Tensor:
    """What it means, [out, in] float64, its inputs in sorted order."""
    groups = torch.arange(weight.in_features) // weight.group_size
    levels = weight.codes.double() - weight.zeros.double().t()[:, groups]
    return levels * weight.scales.double().t()[:, groups]
