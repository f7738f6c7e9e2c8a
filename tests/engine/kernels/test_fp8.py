from __future__ import annotations

import pytest
import torch

from engine.kernels.fp8 import FP8_MAX, MIN_FP8_SCALE, quantize, widen


def test_each_head_uses_the_whole_range_and_comes_back_within_a_sixteenth():
    heads = torch.randn(5, 2, 3, 64) * torch.tensor([0.1, 1.0, 1e3]).view(3, 1)
    codes, scales = quantize(heads)
    assert codes.float().abs().amax(dim=-1).eq(FP8_MAX).all()
    assert scales.shape == (5, 2, 3, 1)
    # Three bits behind the point; numbers near zero by the largest one's least step.
    step = heads.abs().amax(dim=-1, keepdim=True) / FP8_MAX * 2.0**-9
    error = (widen(codes, scales, torch.float32) - heads).abs()
    assert (error <= heads.abs() / 16 + step).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_head_of_zeros_stays_one(dtype: torch.dtype):
    codes, scales = quantize(torch.zeros(1, 8, dtype=dtype))
    assert scales.item() == MIN_FP8_SCALE
    assert widen(codes, scales, dtype).tolist() == [[0.0] * 8]


def test_a_head_with_nan_is_nan():
    codes, scales = quantize(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    assert widen(codes, scales, torch.float32).isnan().tolist() == [[True, True], [False, False]]
