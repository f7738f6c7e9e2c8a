"""The kernel beside its reference; on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from engine.kernels.launches import counted
from engine.kernels.step_kernels import Order
from tests.engine.kernels.poisoned import (
    DEVICE,
    DTYPES,
    apart,
    assert_close,
    gaps,
    poison_new_memory,
    same_bits,
)

if TYPE_CHECKING:
    from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from engine.kernels.add_norm import add_norm, reference

EPS = 1e-5


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def some_order(width: int) -> Order:
    return Order.of(torch.randperm(width, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_permuted", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (300, 64), (2, 4096), (1, 8192), (5, 97)])
def test_it_adds_and_normalises_like_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    width: int,
    is_permuted: bool,
    dtype: torch.dtype,
):
    poison_new_memory(monkeypatch)
    residual, delta, weight = (some(n, width, dtype=dtype) for n in (rows, rows, 1))
    order = some_order(width) if is_permuted else None
    expected_residual = residual.clone()
    expected = reference(expected_residual, delta, weight[0], EPS, order)
    with counted() as launches:
        found = add_norm(residual, delta, weight[0], EPS, order)
    assert_close(found, expected)
    assert_close(residual, expected_residual)
    assert launches == {"add_norm": 1}


def test_without_a_delta_the_residual_stays_and_is_normalised():
    residual, weight, order = some(3, 576), some(576), some_order(576)
    before = residual.clone()
    found = add_norm(residual, None, weight, EPS, order)
    assert same_bits(residual, before)
    assert_close(found, reference(residual, None, weight, EPS, order))


def test_rows_may_lie_apart_and_what_is_between_them_stays():
    residual, delta, weight = apart(some(4, 576)), apart(some(4, 576), 3), some(576)
    expected_residual = residual.clone()
    expected = reference(expected_residual, delta, weight, EPS, None)
    assert_close(add_norm(residual, delta, weight, EPS, None), expected)
    assert_close(residual, expected_residual)
    assert gaps(residual).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_sees_the_residual_as_it_was_stored(dtype: torch.dtype):
    """What is added in one launch or two comes out the same."""
    residual, delta, weight = (some(2, 576, dtype=dtype) for _ in range(3))
    found = add_norm(residual, delta, weight[0], EPS, None)
    assert same_bits(found, add_norm(residual, None, weight[0], EPS, None))


def test_a_row_has_the_same_bits_whichever_lie_beside_it():
    residual, delta, weight = some(5, 576), some(5, 576), some(576)
    alone = add_norm(residual[3:4].clone(), delta[3:4], weight, EPS, None)
    assert same_bits(add_norm(residual, delta, weight, EPS, None)[3:4], alone)


def test_the_order_is_that_of_the_product_behind_it():
    permutation = torch.randperm(576, device=DEVICE)
    residual, weight = some(2, 576), some(576)
    plain = add_norm(residual, None, weight, EPS, None)
    stored = add_norm(residual, None, weight, EPS, Order.of(permutation))
    assert same_bits(stored, plain[:, permutation])


@pytest.mark.parametrize("which", ["residual", "delta"])
def test_rows_may_lie_further_apart_than_32_bits_count(which: str):
    """Memory that nobody touches takes none."""
    stride = 2**30
    memory = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    far = memory.as_strided((3, 64), (stride, 1))
    residual, delta = (some(3, 64, dtype=torch.float16) for _ in range(2))
    weight = some(64, dtype=torch.float16)
    expected = reference(residual.clone(), delta, weight, EPS, None)
    if which == "residual":
        residual = far.copy_(residual)
    else:
        delta = far.copy_(delta)
    assert_close(add_norm(residual, delta, weight, EPS, None), expected)
