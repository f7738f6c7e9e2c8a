"""A layer that multiplies many rows another way than few is held to its files both ways."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from loaders.model.kernels.output_slice import JoinedKernel
from loaders.model.packed_linear import PackedLinear
from loaders.model.self_test.layers import check_layer

MOST = 8  # rows
WEIGHT = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))


class TwoWays:
    """Multiplies up to so many rows one way, more another, which may be wrong."""

    num_invariant_rows = 1
    unit_roundoff = 2**-11
    input_permutation = None
    max_packed_rows = MOST

    def __init__(self, *, many_are_wrong: bool) -> None:
        self._many_are_wrong = many_are_wrong
        self.num_rows: list[int] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.num_rows.append(len(x))
        product = linear(x, WEIGHT)
        return product.flip(1) if self._many_are_wrong and len(x) > MOST else product

    def dequantize(self) -> torch.Tensor:
        return WEIGHT

    def fuse(self, others: object) -> None:
        return None


def layer_of(kernel: TwoWays, *, is_joined: bool) -> PackedLinear:
    if not is_joined:
        return PackedLinear.from_kernel(kernel, 32, 6, backend="two ways")
    half = JoinedKernel(kernel, [3, 3], None).slices()[0]
    return PackedLinear.from_kernel(half, 32, 3, backend="two ways")


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize("num_rows", [3, MOST])
def test_the_way_of_many_rows_is_tried_though_the_prompt_has_few(num_rows: int, is_joined: bool):
    x = torch.randn(num_rows, 32, generator=torch.Generator().manual_seed(1))
    for many_are_wrong in (False, True):
        kernel = TwoWays(many_are_wrong=many_are_wrong)
        layer = layer_of(kernel, is_joined=is_joined)
        own = WEIGHT[: layer.out_features]
        check = check_layer("one", layer, x, {"one": own}.get)
        assert check.passed is not many_are_wrong
        assert max(kernel.num_rows) > MOST
    assert "rows at once" in check.detail
    assert f"{num_rows} rows" not in check.detail


def test_a_prompt_of_many_rows_is_enough():
    kernel = TwoWays(many_are_wrong=True)
    x = torch.randn(MOST + 1, 32, generator=torch.Generator().manual_seed(1))
    check = check_layer("one", layer_of(kernel, is_joined=False), x, lambda name: WEIGHT)
    assert check.passed is False
    assert kernel.num_rows[0] == max(kernel.num_rows) == MOST + 1
