"""How keys and values are kept in fp8: e4m3 numbers, and a float16 scale for each token's head.

Plain PyTorch, shared by the cache and by the references of kernels; kernels that write fp8 are held
to these very bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
# A head of zeros still needs a scale; the least that float16 holds in full precision.
MIN_FP8_SCALE = 2.0**-14


def quantize(key_value: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3 codes [..., head_dim] and float16 scales [..., 1]."""
    largest = key_value.abs().amax(dim=-1, keepdim=True)
    scales = (largest / FP8_MAX).clamp_(min=MIN_FP8_SCALE).to(torch.float16)
    # The scale was rounded, so the largest code may lie a little above what e4m3 holds.
    codes = (key_value / scales.to(key_value.dtype)).clamp_(-FP8_MAX, FP8_MAX)
    return codes.to(torch.float8_e4m3fn), scales


def widen(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that codes and scales stand for."""
    return codes.to(dtype) * scales.to(dtype)
