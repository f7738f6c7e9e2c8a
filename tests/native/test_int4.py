from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from native import int4
from native.sources import library_path
from tests.native import kernels, reference
from tests.native.compilers import HAS_COMPILER, build_emulated, run_comparison
from tests.native.weights import random_weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from native.int4 import Int4Weight

pytestmark = kernels.needed

NUM_ROWS = (1, 2, 3, 4, 6, 7, 8, 12, 13, 16, 23, 24, 25, 37, 48, 63, 70)
# inputs, group size, outputs
SHAPES = (
    (64, 32, 64),
    (96, 96, 130),  # one group for all
    (256, 64, 50),
    (576, 64, 192),
    (512, 128, 100),
    (512, 256, 576),
    (160, 32, 1),
)
PLANES = (1, 2)

# Compared where products have no registers but memory.
COMPARE = """
import sys

import torch

from native import int4
from tests.native.weights import random_weight

torch.ops.load_library(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
torch.manual_seed(1)
for num_outputs, num_inputs, group_size in ((130, 512, 128), (64, 96, 32), (100, 576, 64)):
    for num_planes in (1, 2):
        weight = random_weight(
            num_inputs, group_size, num_outputs, num_planes=num_planes, has_bias=True
        )
        for num_rows in (1, 5, 16, 17, 31, 32, 33, 100, 250):
            x = torch.randn(num_rows, num_inputs)
            by_tiles = int4.multiply_many(weight, x, has_tiles=True)
            wide = x.bfloat16().double() @ int4.unpack(weight)[:, :num_outputs].double()
            wide += weight.bias
            assert (by_tiles - wide).abs().max() < 3e-6 * wide.abs().max()
            assert torch.allclose(by_tiles, int4.multiply_many(weight, x), rtol=1e-4, atol=1e-4)
            for row in range(0, num_rows, 7):
                alone = int4.multiply_many(weight, x[row : row + 1], has_tiles=True)
                assert torch.equal(alone[0], by_tiles[row])
            rounded = int4.multiply_many(weight, x.bfloat16(), has_tiles=True)
            assert torch.equal(rounded, by_tiles.bfloat16())
print("compared")
"""


def check(got: Tensor, x: Tensor, weight: Int4Weight) -> None:
    """Compare with the exact product; sums of float32 may be off by some of their last bits."""
    assert got.dtype == x.dtype
    assert got.shape == (x.shape[0], weight.out_features)
    exact = reference.multiply(weight, x.float())
    magnitude = reference.magnitude(weight, x)
    error = (got.float() - exact).abs()
    allowed = magnitude * 2**-17
    if x.dtype == torch.bfloat16:
        allowed += exact.abs() * 2**-8
    assert bool((error <= allowed).all()), (error - allowed).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_planes", PLANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_weight_and_a_row_has_the_same_bits_among_others(
    shape: tuple[int, int, int], num_planes: int, dtype: torch.dtype, num_threads: int
):
    weight = random_weight(*shape, num_planes=num_planes, has_bias=True)
    x = torch.randn(max(NUM_ROWS), shape[0]).to(dtype)
    alone = torch.cat([int4.multiply(weight, row) for row in x.split(1)])
    check(alone, x, weight)
    for num_rows in NUM_ROWS:
        first = len(x) - num_rows
        assert torch.equal(int4.multiply(weight, x[first:]), alone[first:]), num_rows


@pytest.mark.parametrize("num_planes", PLANES)
def test_a_bias_is_added_before_the_result_is_rounded(num_planes: int):
    weight = random_weight(128, 64, 100, num_planes=num_planes, has_bias=True)
    for dtype in (torch.float32, torch.bfloat16):
        for num_rows in (1, 5, 70):
            x = torch.randn(num_rows, 128).to(dtype)
            check(int4.multiply(weight, x), x, weight)
    of_nothing = torch.zeros(1, 128)
    assert weight.bias is not None
    assert torch.equal(int4.multiply(weight, of_nothing)[0], weight.bias)


@pytest.mark.parametrize("num_planes", PLANES)
def test_activations_are_rounded_to_bfloat16_and_nothing_else_of_them_counts(num_planes: int):
    weight = random_weight(192, 64, 70, num_planes=num_planes)
    x = torch.randn(9, 192)
    rounded = x.bfloat16()
    wide = int4.multiply(weight, x)
    assert torch.equal(wide, int4.multiply(weight, rounded.float()))
    assert torch.equal(wide.bfloat16(), int4.multiply(weight, rounded))


def test_nan_stays_in_its_row():
    weight = random_weight(192, 64, 70)
    x = torch.randn(13, 192)
    whole = int4.multiply(weight, x)
    x[4, 100] = torch.nan
    got = int4.multiply(weight, x)
    others = [row for row in range(13) if row != 4]
    assert bool(got[4].isnan().all())
    assert torch.equal(got[others], whole[others])


@pytest.mark.parametrize("num_planes", PLANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_weight_is_unpacked_with_one_rounding(
    shape: tuple[int, int, int], num_planes: int, num_threads: int
):
    weight = random_weight(*shape, num_planes=num_planes)
    unpacked = int4.unpack(weight)
    exact = reference.exact_weight(weight)
    assert unpacked.dtype == torch.bfloat16
    assert unpacked.shape == exact.shape
    error = (unpacked.double() - exact).abs()
    assert bool((error <= exact.abs() * (2**-8 + 2**-22)).all())


def test_the_order_of_inputs_is_the_callers_affair():
    weight = random_weight(128, 64, 100)
    ordered = replace(weight, input_permutation=torch.randperm(128))
    x = torch.randn(3, 128)
    assert torch.equal(int4.multiply(ordered, x), int4.multiply(weight, x))
    assert torch.equal(int4.unpack(ordered), int4.unpack(weight))


def test_blocks_are_those_that_pytorch_packs():
    codes = torch.randint(16, (192, 96), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    assert torch.equal(reference.pack(codes), packed)
    assert torch.equal(reference.codes_of(packed), codes.t().to(torch.uint8))


def test_no_rows_are_no_work():
    weight = random_weight(128, 64, 100, has_bias=True)
    for dtype in (torch.float32, torch.bfloat16):
        got = int4.multiply(weight, torch.empty(0, 128, dtype=dtype))
        assert (got.shape, got.dtype) == ((0, 100), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_planes", PLANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_many_rows_are_multiplied_by_rounded_weights_each_as_it_is_alone(
    shape: tuple[int, int, int], num_planes: int, dtype: torch.dtype, num_threads: int
):
    weight = random_weight(*shape, num_planes=num_planes, has_bias=True)
    rounded = int4.unpack(weight)[:, : weight.out_features].double()
    x = torch.randn(211, shape[0]).to(dtype)
    product = int4.multiply_many(weight, x)
    exact = x.bfloat16().double() @ rounded + weight.bias
    allowed = (x.bfloat16().abs().double() @ rounded.abs() + weight.bias.abs()) * 2**-17
    if dtype == torch.bfloat16:
        allowed += exact.abs() * 2**-8
    assert product.dtype == dtype
    assert bool(((product - exact).abs() <= allowed).all())
    for rows in (1, 5, 6, 7, 32, 100):
        assert torch.equal(int4.multiply_many(weight, x[-rows:]), product[-rows:])


def compare_by_registers(library: Path) -> None:
    for num_threads in ("1", "2"):
        run_comparison(COMPARE, str(library), num_threads)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no g++ here")
def test_products_by_tile_registers_are_those_without_and_a_row_is_as_it_is_alone(tmp_path):
    library = tmp_path / "emulated.so"
    build_emulated(library, "int4.cpp")
    compare_by_registers(library)


@pytest.mark.slow
def test_products_by_the_processors_own_tile_registers_are_those_without():
    if not int4.may_use_tiles():
        pytest.skip("this CPU has no tile registers for bfloat16, or the system gives none")
    compare_by_registers(library_path())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_planes": 3}, "one plane or two"),
        ({"out_features": 129}, "do not fit together"),
        ({"out_features": 0}, "do not fit together"),
        ({"packed": torch.zeros(96, 64, dtype=torch.uint8)}, "do not fit together"),
        ({"scales_and_minima": torch.zeros(0, 128, 2)}, "do not fit together"),
        ({"scales_and_minima": torch.zeros(8, 128, 2)}, "a multiple of 32"),
        ({"bias": torch.zeros(99)}, "a bias of shape"),
        ({"input_permutation": torch.arange(1, 129)}, "the order of inputs"),
        ({"input_permutation": torch.arange(64)}, "the order of inputs"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(changes: dict[str, Any], said: str):
    weight = random_weight(128, 64, 100)
    weight.check()
    with pytest.raises(ValueError, match=said):
        replace(weight, **changes).check()


@pytest.mark.parametrize("multiply", [int4.multiply, int4.multiply_many])
@pytest.mark.parametrize(
    ("changes", "x", "said"),
    [
        ({}, torch.randn(2, 96), "other inputs"),
        ({}, torch.randn(2, 128).half(), "float32 or bfloat16|another type"),
        ({}, torch.randn(128, 2).t(), "row behind row"),
        ({"packed": torch.zeros(96, 64, dtype=torch.uint8)}, torch.randn(2, 128), "blocks of 64"),
        ({"scales_and_minima": torch.zeros(8, 128, 2)}, torch.randn(2, 128), "multiple of 32"),
        ({"out_features": 200}, torch.randn(2, 128), "fewer outputs"),
        ({"bias": torch.zeros(99)}, torch.randn(2, 128), "the bias"),
        ({"num_planes": 0}, torch.randn(2, 128), "one plane or two"),
    ],
)
def test_what_would_be_read_beyond_its_end_is_refused(
    multiply: Callable[..., Tensor], changes: dict[str, Any], x: Tensor, said: str
):
    with pytest.raises(RuntimeError, match=said):
        multiply(replace(random_weight(128, 64, 100), **changes), x)


def test_tile_registers_are_refused_where_the_system_gives_none():
    if int4.may_use_tiles():
        pytest.skip("this system gives them")
    with pytest.raises(RuntimeError, match="does not give tile registers"):
        int4.multiply_many(random_weight(128, 64, 100), torch.randn(2, 128), has_tiles=True)
