from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from engine.errors import UnsupportedArchitectureError
from engine.layers.weights import (
    DenseWeight,
    InvariantLinear,
    JoinedLinears,
    LinearsInUse,
    as_linear_weight,
    weights_in_use,
)
from tests.engine.ordered_weights import OrderedWeight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.layers.weights import LinearWeight


class Permuted(nn.Module):
    """A weight stored with its input columns in another order; counts its products."""

    num_invariant_rows = 1

    def __init__(self, linear: nn.Linear, permutation: torch.Tensor, *, can_fuse: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.input_permutation = permutation
        self.output_permutation = None
        self.can_fuse = can_fuse
        self.calls = 0
        self.stored = linear.weight.detach()[:, permutation]

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x @ self.stored.T

    def fuse_with(self, others: Sequence[LinearWeight]) -> Permuted | None:
        if not self.can_fuse:
            return None
        fused = Permuted(nn.Linear(self.in_features, 1), self.input_permutation, can_fuse=True)
        fused.stored = torch.cat([self.stored, *(o.stored for o in others)])  # type: ignore[attr-defined]
        return fused


@pytest.mark.parametrize("biases", [(False, False), (True, True), (True, False)])
def test_dense_weights_fuse_into_one_product(biases: tuple[bool, bool]):
    linears = [nn.Linear(8, 3, bias=biases[0]), nn.Linear(8, 5, bias=biases[1])]
    x = torch.randn(4, 8)
    wanted = torch.cat([linear(x) for linear in linears], dim=-1)
    one, other = map(as_linear_weight, linears)
    fused = one.fuse_with([other])
    assert fused is not None
    assert (fused.in_features, fused.out_features) == (8, 8)
    torch.testing.assert_close(fused.matmul(x), wanted)


def test_dense_weights_of_different_dtypes_do_not_fuse():
    one = as_linear_weight(nn.Linear(8, 3))
    assert one.fuse_with([as_linear_weight(nn.Linear(8, 3).half())]) is None


def test_a_half_precision_weight_gives_back_the_dtype_it_was_given():
    linear = nn.Linear(8, 3).bfloat16()
    x = torch.randn(4, 8)
    answer = as_linear_weight(linear).matmul(x)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, linear.float()(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("can_fuse", [True, False])
def test_siblings_that_share_an_order_have_their_input_permuted_once(can_fuse: bool):
    linears = [nn.Linear(8, 3, bias=False), nn.Linear(8, 5, bias=False)]
    order = torch.randperm(8)
    weights = [Permuted(linear, order.clone(), can_fuse=can_fuse) for linear in linears]
    joined = JoinedLinears(weights, is_batch_invariant=False)
    x = torch.randn(4, 8)
    torch.testing.assert_close(joined(x), torch.cat([linear(x) for linear in linears], dim=-1))
    assert [weight.calls for weight in weights] == ([0, 0] if can_fuse else [1, 1])


def test_siblings_with_orders_of_their_own_each_get_theirs():
    linears = [nn.Linear(8, 3, bias=False) for _ in range(3)]
    weights = [
        Permuted(linears[0], torch.randperm(8), can_fuse=False),
        Permuted(linears[1], torch.randperm(8), can_fuse=False),
        linears[2],
    ]
    x = torch.randn(4, 8)
    wanted = torch.cat([linear(x) for linear in linears], dim=-1)
    torch.testing.assert_close(JoinedLinears(weights, is_batch_invariant=False)(x), wanted)


def test_a_plain_linear_layer_is_wrapped_and_anything_else_refused():
    assert isinstance(as_linear_weight(nn.Linear(2, 2)), DenseWeight)
    with pytest.raises(UnsupportedArchitectureError, match="Conv1d stands where a linear layer"):
        as_linear_weight(nn.Conv1d(2, 2, 1))


@pytest.mark.parametrize("width", [8, 33, 576])
def test_a_row_is_the_same_to_the_last_bit_in_any_company_where_that_is_asked_for(width: int):
    linear = nn.Linear(width, 50)
    joined = JoinedLinears([linear], is_batch_invariant=True)
    x = torch.randn(40, width)
    together = joined(x)
    for row in range(40):
        assert torch.equal(joined(x[row : row + 1].clone())[0], together[row])


def test_a_models_linear_layer_can_be_put_behind_one_that_keeps_rows_apart():
    linear = nn.Linear(8, 3)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(InvariantLinear(linear)(x), linear(x))


@pytest.mark.parametrize("is_batch_invariant", [True, False])
@pytest.mark.parametrize("can_fuse", [True, False])
def test_outputs_that_were_sorted_for_another_layer_come_in_their_own_order(
    is_batch_invariant: bool, can_fuse: bool
):
    linears = [nn.Linear(8, 5), nn.Linear(8, 5)]
    order = torch.randperm(5)
    weights = [
        OrderedWeight(linear.weight, linear.bias, None, order, can_fuse=can_fuse)
        for linear in linears
    ]
    x = torch.randn(4, 8)
    joined = JoinedLinears(weights, is_batch_invariant=is_batch_invariant)
    torch.testing.assert_close(joined(x), torch.cat([linear(x) for linear in linears], dim=-1))


def test_each_weight_that_layers_multiply_by_is_given_once_however_it_stands_in_them():
    linears = [nn.Linear(8, 3), nn.Linear(8, 5)]
    apart = [Permuted(linear, torch.randperm(8), can_fuse=False) for linear in linears]
    alone = Permuted(nn.Linear(8, 2), torch.randperm(8), can_fuse=False)
    used = [
        LinearsInUse(("a", "b"), (3, 5), JoinedLinears(apart, is_batch_invariant=False)),
        LinearsInUse(("c",), (2,), alone),  # type: ignore[arg-type]  # a module, as Transformers'
        LinearsInUse(("d",), (3,), InvariantLinear(apart[0])),
        LinearsInUse(("e",), (3,), lambda x: x),
    ]
    assert list(weights_in_use(used)) == [*apart, alone]
