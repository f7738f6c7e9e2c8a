from __future__ import annotations

import pytest
import torch

from native import int8
from tests.native import kernels
from tests.native.weights import random_int8_weight

pytestmark = kernels.needed

NUM_ROWS = (1, 2, 5, 11, 12, 13, 24, 25, 40)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("has_offsets", [False, True], ids=["no offsets", "offsets"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(576, 960), (96, 100), (512, 17), (32, 1)], ids=str)
def test_products_are_those_of_the_weight_and_a_row_has_the_same_bits_among_others(
    shape: tuple[int, int],
    dtype: torch.dtype,
    has_offsets: bool,
    has_bias: bool,
    num_threads: int,
):
    weight = random_int8_weight(*shape, has_offsets=has_offsets, has_bias=has_bias)
    levels = weight.codes.double() + (weight.offsets.double()[:, None] if has_offsets else 0)
    dense = (levels * weight.scales.double()[:, None]).t()
    bias = weight.bias.double() if has_bias else 0
    x = torch.randn(max(NUM_ROWS), shape[0]).to(dtype)
    rounded = x.bfloat16().double()
    exact = rounded @ dense + bias
    # Codes and offsets are summed apart, so their sizes add up.
    apart = weight.codes.double().abs() + (
        weight.offsets.double().abs()[:, None] if has_offsets else 0
    )
    allowed = (rounded.abs() @ (apart * weight.scales[:, None]).t() + abs(bias)) * 2**-17
    if dtype == torch.bfloat16:
        allowed += exact.abs() * 2**-8

    product = int8.multiply(weight, x)

    assert product.dtype == dtype
    assert bool(((product - exact).abs() <= allowed).all())
    for rows in NUM_ROWS:
        assert torch.equal(int8.multiply(weight, x[-rows:]), product[-rows:])


def test_no_rows_give_no_rows():
    weight = random_int8_weight(64, 40, has_offsets=True)
    assert int8.multiply(weight, torch.empty(0, 64)).shape == (0, 40)


def test_tensors_that_do_not_fit_together_are_refused():
    weight = int8.Int8Weight(torch.zeros(4, 48, dtype=torch.int8), torch.ones(4))
    with pytest.raises(ValueError, match="48 inputs are no multiple of 32"):
        weight.check()
    weight = int8.Int8Weight(torch.zeros(4, 64, dtype=torch.int8), torch.ones(3))
    with pytest.raises(ValueError, match="scales of"):
        weight.check()
    with pytest.raises(RuntimeError, match="each output has a scale"):
        int8.multiply(weight, torch.randn(1, 64))
    with pytest.raises(RuntimeError, match="other inputs"):
        int8.multiply(random_int8_weight(64, 4, has_offsets=False), torch.randn(1, 32))
