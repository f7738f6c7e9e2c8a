"""Pieces of the kernels that need no product to be seen."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from loaders.model.kernels.triton import levels

pytestmark = pytest.mark.skipif(not levels.INTERPRETED, reason="tests/gpu runs it on a GPU")

group_values = levels.group_values


@triton.jit
def one_group(
    table: tl.tensor, found: tl.tensor, first: tl.tensor, padded_out: tl.tensor,
    num_groups: tl.tensor,
) -> None:  # fmt: skip
    outs = tl.arange(0, 64)
    values = group_values(table, first, outs, padded_out, num_groups, 16)
    tl.store(found + outs[None, :], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_groups_beyond_two_to_the_31_are_found(dtype):
    """Scales or zero points, of which only the pages of the last group are ever touched."""
    padded_out, groups = 2**18, 2**13 + 1
    table = torch.empty(groups, padded_out, dtype=dtype)
    table[-1, :64] = torch.arange(64).to(dtype)
    found = torch.full((64,), 99, dtype=dtype)
    one_group[(1,)](table, found, (groups - 1) * 16, padded_out, groups)
    assert found.tolist() == list(range(64))


def test_inputs_that_pad_a_block_read_the_last_group():
    table = torch.arange(128.0).view(2, 64)
    found = torch.empty(64)
    one_group[(1,)](table, found, 5 * 16, 64, 2)
    assert torch.equal(found, table[1])
