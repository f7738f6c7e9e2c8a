"""Few rows by a packed weight, in Triton's interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from loaders.model.kernels.triton import few_rows
from loaders.model.kernels.triton.levels import INTERPRETED
from loaders.model.kernels.triton.pack import pack
from loaders.model.kernels.triton.workspace import Workspace
from loaders.quantization.plane_layout import MAX_FEW_ROWS, Split, num_locks
from tests.grouped_weights import exact, grouped_weight

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="tests/gpu runs it on a GPU")

CPU = torch.device("cpu")
block_product = few_rows._block_product
# Of what float64 gives. The interpreter cuts float32 off to bfloat16 where a GPU rounds.
MAX_ERROR = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-20}


def poisoned_workspace(planes, split):
    workspace = Workspace(CPU)
    workspace.reserve(
        num_partials=split.num_partials(planes.padded_out),
        num_locks=num_locks(planes.padded_out),
        weight_bytes=0,
    )
    workspace.partials.fill_(torch.nan)
    return workspace


def multiply(weight, x, bias=None, *, parts=None):
    planes = pack(weight)
    split = Split.of(planes.num_blocks, planes.padded_out, 132)
    if parts is not None:
        blocks = -(-planes.num_blocks // parts)
        split = Split(-(-planes.num_blocks // blocks), blocks)
    workspace = poisoned_workspace(planes, split)
    found = few_rows.multiply(x, planes, bias, split, workspace)
    assert not workspace.locks.any()  # or the next layer would never see its last part
    return found


def error(found, weight, x, bias=None):
    expected = x.double() @ exact(weight).t()
    if bias is not None:
        expected += bias.double()
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("group_size", "zeros", "dtype"),
    [
        (128, "common", torch.float16),
        (32, "whole", torch.bfloat16),
        (16, "float", torch.float16),
        (24, "whole", torch.float16),
        (-1, "whole", torch.float32),
    ],
)
def test_it_multiplies_as_the_files_say(bits, group_size, zeros, dtype):
    """200 inputs: the last group, the last block and the last tile of outputs are partial."""
    weight = grouped_weight(bits, group_size, 200, 70, zeros=zeros)
    x, bias = torch.randn(3, 200).to(dtype), torch.randn(70)
    found = multiply(weight, x, bias)
    assert found.dtype == dtype
    assert error(found, weight, x, bias) < MAX_ERROR[dtype]


@pytest.mark.parametrize(
    ("group_size", "dtype", "zeros"),
    [
        (100, torch.bfloat16, "common"),
        (96, torch.float32, "whole"),
        (100, torch.float16, "float"),
        (24, torch.bfloat16, "float"),
        (128, torch.bfloat16, "float"),
    ],
)
def test_groups_may_end_anywhere(group_size, dtype, zeros):
    weight = grouped_weight(4, group_size, 576, 64, zeros=zeros)
    x = torch.randn(2, 576).to(dtype)
    assert error(multiply(weight, x), weight, x) < MAX_ERROR[dtype]


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 33, MAX_FEW_ROWS])
def test_any_number_of_few_rows(num_rows):
    weight = grouped_weight(4, 32, 128, 65)
    x = torch.randn(num_rows, 128).half()
    assert error(multiply(weight, x), weight, x) < MAX_ERROR[torch.float16]


@pytest.mark.parametrize("out_features", [1, 63, 64, 129, 300])
def test_any_number_of_outputs(out_features):
    weight = grouped_weight(4, 64, 128, out_features)
    x = torch.randn(2, 128).half()
    found = multiply(weight, x)
    assert found.shape == (2, out_features)
    assert error(found, weight, x) < MAX_ERROR[torch.float16]


def test_parts_of_the_inputs_add_up_in_whatever_number():
    weight = grouped_weight(4, 128, 576, 64)
    x = torch.randn(20, 576)
    for parts in (1, 2, 3, 5):
        assert error(multiply(weight, x, parts=parts), weight, x) < MAX_ERROR[torch.float32]


def test_a_row_is_the_same_to_the_last_bit_among_as_many_as_it_says():
    weight = grouped_weight(4, 64, 576, 64)
    x = torch.randn(few_rows.NUM_INVARIANT_ROWS, 576).half()
    alone = torch.cat([multiply(weight, row) for row in x[:4].split(1)])
    assert torch.equal(multiply(weight, x)[:4], alone)


def test_rows_may_lie_apart_and_columns_too():
    weight = grouped_weight(4, 64, 128, 64)
    wide = torch.randn(3, 300).half()
    apart = wide[:, 100:228]
    assert error(multiply(weight, apart), weight, apart) < MAX_ERROR[torch.float16]
    turned = torch.randn(128, 3).half().t()
    assert error(multiply(weight, turned), weight, turned) < MAX_ERROR[torch.float16]


def test_activations_beyond_the_inputs_are_not_read():
    weight = grouped_weight(4, 64, 100, 64)
    wide = torch.full((2, 128), torch.nan).half()
    wide[:, :100] = torch.randn(2, 100)
    x = wide[:, :100]
    assert error(multiply(weight, x), weight, x) < MAX_ERROR[torch.float16]


def test_whole_zero_points_cost_no_precision():
    """Codes less zero points are exact in 16 bits, so one term comes out as float64 has it."""
    for dtype in (torch.float16, torch.bfloat16):
        for bits in (4, 6, 8):
            weight = grouped_weight(bits, -1, 64, 64)
            weight.scales.fill_(0.5)
            x = torch.zeros(1, 64, dtype=dtype)
            x[0, 7] = 1
            found = multiply(weight, x).double()
            assert torch.equal(found[0], exact(weight)[:, 7])


def test_it_agrees_with_its_reference():
    weight = grouped_weight(3, 32, 200, 70, zeros="float")
    x, bias = torch.randn(5, 200).half(), torch.randn(70)
    expected = few_rows.reference(x, pack(weight), bias).float()
    found = multiply(weight, x, bias).float()
    assert float((found - expected).norm() / expected.norm()) < MAX_ERROR[torch.float16]


@triton.jit
def one_block(
    x: tl.tensor, low: tl.tensor, scales: tl.tensor, y: tl.tensor, block: tl.tensor,
    in_features: tl.tensor, padded_out: tl.tensor,
) -> None:  # fmt: skip
    outs, rows = tl.arange(0, 64), tl.arange(0, 16)
    sums = block_product(
        tl.zeros((16, 64), dtype=tl.float32), x + rows[:, None], rows < 1, low, None, scales, None,
        block, outs, in_features, padded_out, 1, 4, 0, 64, 0, 0, 8, 0, tl.float32, True,
    )  # fmt: skip
    tl.store(y + rows[:, None] * 64 + outs[None, :], sums)


def test_bytes_beyond_two_to_the_31_are_found():
    """Of a plane of 2.1 GB only the pages of its last block are ever touched."""
    padded_out, blocks = 2**18, 129
    start = (blocks - 1) * 64 * padded_out
    assert start == 2**31
    low = torch.empty(blocks * 64, padded_out, dtype=torch.uint8)
    codes = torch.randint(256, (64, 64), dtype=torch.uint8)
    low[-64:, :64] = codes
    x, y = torch.randn(blocks * 128), torch.empty(16, 64)
    one_block[(1,)](x, low, torch.ones(64).half(), y, blocks - 1, len(x), padded_out)
    weight = torch.cat((codes & 15, codes >> 4)).float() - 8
    torch.testing.assert_close(y[0], x[-128:] @ weight, rtol=1e-4, atol=1e-4)


def test_rows_further_apart_than_32_bits_count_are_found():
    weight, x = grouped_weight(4, 32, 64, 64), torch.randn(3, 64).half()
    memory = torch.empty(2 * 2**30 + 64, dtype=torch.float16)
    far = memory.as_strided((3, 64), (2**30, 1)).copy_(x)
    assert torch.equal(multiply(weight, far), multiply(weight, x))
