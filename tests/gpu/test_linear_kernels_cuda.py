"""The kernels of packed layers, compiled: both ways of rows against float64 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loaders.model.kernels import launches
from loaders.model.kernels.triton_linear import TritonBackend
from loaders.quantization.plane_layout import MAX_FEW_ROWS
from tests.grouped_weights import exact, grouped_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Of the norm of what float64 gives: weights, sums and results are each rounded to the dtype.
MAX_ERROR = {torch.float16: 2**-9, torch.bfloat16: 2**-6}
FORMS = [
    (4, 128, "common", torch.float16),
    (4, 32, "whole", torch.bfloat16),
    (4, 24, "float", torch.float16),
    (3, 128, "whole", torch.float16),
    (8, -1, "whole", torch.bfloat16),
    (2, 64, "float", torch.bfloat16),
    (5, 32, "float", torch.float16),
    (6, 16, "float", torch.bfloat16),
]


@pytest.mark.parametrize(("bits", "group_size", "zeros", "dtype"), FORMS)
def test_few_rows_and_many_give_what_the_files_say(bits, group_size, zeros, dtype):
    """600 inputs and 200 outputs: the last group, block and tile are partial."""
    weight, bias = grouped_weight(bits, group_size, 600, 200, zeros=zeros), torch.randn(200)
    on_gpu = replace(
        weight,
        codes=weight.codes.cuda(),
        scales=weight.scales.cuda(),
        zeros=weight.zeros.cuda(),
    )
    kernel = TritonBackend().prepare_grouped(on_gpu, bias.cuda(), dtype)
    for num_rows in (1, 17, MAX_FEW_ROWS, MAX_FEW_ROWS + 1, 300):
        x = torch.randn(num_rows, 600).to(dtype)
        expected = x.double() @ exact(weight).t() + bias.double()
        with launches.counted() as found:
            product = kernel(x.cuda()).cpu().double()
        way = "linear_few_rows" if num_rows <= MAX_FEW_ROWS else "linear_dequantize"
        assert found == {way: 1}
        assert float((product - expected).norm() / expected.norm()) < MAX_ERROR[dtype]


def test_a_product_is_the_same_each_time_and_alone_or_among_others():
    """Whichever of a tile's programs comes last adds the parts in their order."""
    weight = grouped_weight(4, 128, 4096, 256)
    on_gpu = replace(
        weight,
        codes=weight.codes.cuda(),
        scales=weight.scales.cuda(),
        zeros=weight.zeros.cuda(),
    )
    kernel = TritonBackend().prepare_grouped(on_gpu, None, torch.float16)
    x = torch.randn(8, 4096, dtype=torch.float16, device="cuda")
    first = kernel(x)
    for _ in range(50):
        assert torch.equal(kernel(x), first)
    assert torch.equal(kernel(x[:1]), first[:1])
