from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.kernels.launches import counted
from engine.layers.ordered import OrderedLinears, gather_between, order_of_halves
from tests.engine.ordered_weights import OrderedWeight


def orders(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randperm(size, generator=generator) for size in sizes]


def linears(*outputs: int, biases: bool = False) -> list[nn.Linear]:
    return [nn.Linear(8, n, bias=biases) for n in outputs]


def stored(
    linear: nn.Linear,
    inputs: torch.Tensor | None,
    outputs: torch.Tensor | None = None,
    *,
    can_fuse: bool = True,
) -> OrderedWeight:
    return OrderedWeight(linear.weight, linear.bias, inputs, outputs, can_fuse=can_fuse)


def natural(parts: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part(x) for part in parts], dim=-1)


@pytest.mark.parametrize("stored_is_none", [True, False])
@pytest.mark.parametrize("wanted_is_none", [True, False])
def test_columns_are_brought_from_any_order_to_any_other(stored_is_none, wanted_is_none):
    one, other = orders(8, 8)
    have = None if stored_is_none else one
    want = None if wanted_is_none else other
    x = torch.randn(3, 8)
    gather = gather_between(have, want)
    as_stored = x if have is None else x[:, have]
    as_wanted = x if want is None else x[:, want]
    found = as_stored if gather is None else gather(as_stored)
    assert torch.equal(found, as_wanted)
    assert (gather is None) == (have is None and want is None)


def test_orders_that_are_one_need_no_gather_whichever_way_they_are_told():
    (order,) = orders(8)
    assert gather_between(order, order.clone()) is None
    assert gather_between(torch.arange(8), None) is None
    assert gather_between(None, torch.arange(8)) is None


def test_input_in_the_shared_order_is_multiplied_at_once_and_without_a_gather():
    parts, (order,) = linears(3, 5, biases=True), orders(8)
    joined = OrderedLinears([stored(part, order.clone()) for part in parts])
    assert joined.order is not None
    x = torch.randn(4, 8)
    with counted() as launches:
        found = joined(x[:, joined.order.gather])
    torch.testing.assert_close(found, natural(parts, x))
    assert launches["gather_input"] == 0
    assert len(joined._weights) == 1


def test_parts_with_orders_of_their_own_are_gathered_for_and_that_is_counted():
    parts, (one, other) = linears(3, 5, 2), orders(8, 8)
    joined = OrderedLinears([stored(parts[0], one), stored(parts[1], other), parts[2]])
    assert joined.order is not None
    x = torch.randn(4, 8)
    with counted() as launches:
        found = joined(x[:, joined.order.gather])
    torch.testing.assert_close(found, natural(parts, x))
    assert launches["gather_input"] == 2  # all but the first, whose order is stored


def test_parts_of_different_dtypes_are_put_side_by_side():
    parts = linears(3, 5)
    x = torch.randn(4, 8)
    wanted = natural(parts, x)
    joined = OrderedLinears([parts[0], parts[1].double()])
    assert joined.order is None
    torch.testing.assert_close(joined(x), wanted)


def test_only_some_parts_have_a_bias():
    parts = [nn.Linear(8, 3, bias=True), nn.Linear(8, 5, bias=False)]
    x = torch.randn(4, 8)
    torch.testing.assert_close(OrderedLinears(parts)(x), natural(parts, x))


@pytest.mark.parametrize("can_fuse", [True, False])
def test_outputs_are_left_as_they_come_only_where_that_is_asked_for(can_fuse: bool):
    parts, (first, second) = linears(3, 5), orders(3, 5)
    weights = [
        stored(parts[0], None, first, can_fuse=can_fuse),
        stored(parts[1], None, second, can_fuse=can_fuse),
    ]
    x = torch.randn(4, 8)
    torch.testing.assert_close(OrderedLinears(weights)(x), natural(parts, x))

    left = OrderedLinears(weights, are_outputs_natural=False)
    assert left.output_permutation is not None
    assert left.output_permutation.tolist() == [*first.tolist(), *(second + 3).tolist()]
    torch.testing.assert_close(left(x), natural(parts, x)[:, left.output_permutation])


@pytest.mark.parametrize("are_outputs_natural", [True, False])
def test_whoever_checks_a_product_gives_and_gets_the_models_own_orders(are_outputs_natural: bool):
    parts, (inputs, outputs) = linears(3, 5), orders(8, 3)
    weights = [stored(parts[0], inputs, outputs), stored(parts[1], inputs)]
    joined = OrderedLinears(weights, are_outputs_natural=are_outputs_natural)
    x = torch.randn(4, 8)
    torch.testing.assert_close(joined.multiply_naturally(x), natural(parts, x))


def test_halves_lie_in_one_order_or_they_do_not():
    one, other = orders(8, 8)
    assert order_of_halves(None, 8) == (True, None)
    are_alike, order = order_of_halves(torch.cat((one, one + 8)), 8)
    assert are_alike
    assert torch.equal(order, one)
    assert order_of_halves(torch.cat((one, other + 8)), 8)[0] is False
