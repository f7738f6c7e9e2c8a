from __future__ import annotations

import torch
from torch import nn

from engine.layers.native_linears import NativeLinears
from tests.engine.native_models import BlockLinear
from tests.native.weights import packed_weight


def block(num_outputs: int = 64, *, has_bias: bool = False, most_few_rows: int = 24) -> BlockLinear:
    bias = torch.randn(num_outputs) if has_bias else None
    weight = packed_weight(torch.randn(num_outputs, 64), bias)
    return BlockLinear(weight, 64, most_few_rows=most_few_rows)


def test_weights_that_round_take_rounded_rows_unless_a_bias_is_added():
    assert NativeLinears([block()]).takes_rounded
    assert NativeLinears([block(), block()]).takes_rounded
    with_bias = NativeLinears([block(has_bias=True)])
    assert with_bias.is_rounding
    assert not with_bias.takes_rounded
    assert not NativeLinears([nn.Linear(64, 64)]).takes_rounded
    assert not NativeLinears([block(), nn.Linear(64, 64)]).is_rounding
    finer = block()
    finer.unit_roundoff = 2**-11
    assert not NativeLinears([finer]).is_rounding
    assert not NativeLinears([finer]).takes_rounded


def test_rounded_rows_give_what_their_products_were_rounded_to():
    linears = NativeLinears([block(), block(128)])
    x = torch.randn(20, 64).bfloat16()
    got = linears(x, has_pieces=True)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got.float(), linears(x.float(), has_pieces=True))


def test_layers_that_are_multiplied_as_one_are_one_weight_of_the_kernels():
    first, second = block(has_bias=True), block(128, has_bias=True)
    joined = NativeLinears([first, second]).native_weight()
    assert joined is not None
    assert joined.out_features == 192
    assert torch.equal(joined.packed[:64], first.native_weight().packed)
    apart = NativeLinears([block(50), block()])  # outputs in between would be padding
    assert apart.native_weight() is None
    assert NativeLinears([nn.Linear(64, 64)]).native_weight() is None


def test_the_strictest_weight_says_how_many_rows_are_few():
    assert NativeLinears([block(50, most_few_rows=9), block(most_few_rows=7)]).most_few_rows == 7
    assert NativeLinears([nn.Linear(64, 64)]).most_few_rows == 1


def test_outputs_lie_row_behind_row():
    for has_pieces in (False, True):
        for rows in (torch.randn(5, 64), torch.randn(5, 64).bfloat16()):
            out = NativeLinears([block(50)])(rows, has_pieces=has_pieces)
            assert out.shape == (5, 50)
            assert out.is_contiguous()
