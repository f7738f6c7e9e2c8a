"""Kernels with several ways: each multiplies alike, and rows go the way chosen for them."""

from __future__ import annotations

import pytest
import torch

from loaders.model.kernels import block_kernel, int4_blocks, ways
from loaders.model.kernels.int4pack import Int4PackBackend
from loaders.model.kernels.int4planes import Int4PlanesBackend
from loaders.model.kernels.int8pack import Int8PackBackend
from loaders.model.kernels.ways import Bfloat16, WayChoice, bfloat16_products
from native import library
from tests.loaders.model.kernels.small_layers import (
    MAX_RELATIVE_ERROR,
    expected_product,
    packed,
    relative_error,
    rows,
)

library.why_not()  # loads the kernels in C++, whose ways are tested, where there are any
CASES = [(Int4PackBackend(), 4, 64), (Int4PlanesBackend(), 8, 64), (Int8PackBackend(), 8, -1)]
FLOAT32 = {"float32 tiles", "float32 dense"}


@pytest.fixture
def fresh_answers():
    """What is asked of the processor once is asked again, before and after the test."""
    bfloat16_products.cache_clear()
    yield
    bfloat16_products.cache_clear()


def with_bfloat16(monkeypatch, how):
    monkeypatch.setattr(ways, "bfloat16_products", lambda: how)


def prepared(backend, bits, group, **more):
    return backend.prepare(packed(bits, group, out_features=200, **more))


@pytest.mark.parametrize(
    ("abilities", "is_supported", "limit", "how"),
    [
        ({"avx512_bf16": True}, True, None, Bfloat16.OWN),
        ({"amx_bf16": True, "avx512_bf16": False}, True, None, Bfloat16.OWN),
        ({"avx512_bf16": True}, True, "AVX512_CORE_AMX", Bfloat16.OWN),
        ({"avx512_bf16": True}, True, "avx512_core", Bfloat16.MADE_UP),
        ({"avx512_bf16": False}, True, None, Bfloat16.MADE_UP),
        ({"avx512_bf16": True}, False, "AVX2", Bfloat16.SLOW),
        ({}, False, None, Bfloat16.SLOW),
    ],
)
def test_how_bfloat16_is_multiplied_follows_from_the_processor_and_what_onednn_may_use(
    monkeypatch, fresh_answers, abilities, is_supported, limit, how
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_supported)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bfloat16_products() is how


@pytest.mark.parametrize(
    ("how", "dense"),
    [
        (Bfloat16.OWN, [{"tiles"}, {"tiles"}, {"dense"}]),
        (Bfloat16.SLOW, [{"float32 tiles"}, {"float32 tiles"}, {"float32 dense"}]),
        (
            Bfloat16.MADE_UP,
            [
                {"tiles", "float32 tiles"},
                {"tiles", "float32 tiles"},
                {"dense", "float32 dense"},
            ],
        ),
    ],
)
def test_dense_products_are_in_what_the_processor_multiplies_best_also_where_nothing_is_measured(
    monkeypatch, how, dense
):
    with_bfloat16(monkeypatch, how)
    for (backend, bits, group), names in zip(CASES, dense, strict=True):
        kernel = prepared(backend, bits, group)
        unpacked = kernel.ways_of_many().keys() - kernel.ways_of_few().keys()
        assert {name for name in unpacked if not name.startswith("native")} == names
        assert kernel.choice.many == ("float32 " * (how is Bfloat16.SLOW)) + kernel_name(backend)


def kernel_name(backend):
    return "dense" if isinstance(backend, Int8PackBackend) else "tiles"


@pytest.mark.parametrize(("backend", "bits", "group"), CASES)
@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_way_gives_the_product_to_its_own_roundings(monkeypatch, backend, bits, group, count):
    with_bfloat16(monkeypatch, Bfloat16.MADE_UP)
    kernel = prepared(backend, bits, group, act_order=True)
    x = rows(count)
    expected = expected_product(kernel, x)
    made = {**kernel.ways_of_few(), **kernel.ways_of_many()}
    assert len(made) >= 3
    permuted = x if kernel.input_permutation is None else x[:, kernel.input_permutation]
    for name, make in made.items():
        found = make()(permuted)
        assert (found.shape, found.dtype) == ((count, 200), torch.float32)
        bound = 2**-14 if name in FLOAT32 else MAX_RELATIVE_ERROR
        assert relative_error(found, expected) < bound, name


@pytest.mark.parametrize(("backend", "bits", "group"), CASES)
def test_rows_go_the_way_that_was_chosen_for_their_number(monkeypatch, backend, bits, group):
    with_bfloat16(monkeypatch, Bfloat16.MADE_UP)
    kernel = prepared(backend, bits, group)
    few = next(iter(kernel.ways_of_few()))
    (many,) = FLOAT32 & kernel.ways_of_many().keys()  # which rounds otherwise than all others
    x = rows(8)
    by_few, by_many = kernel.ways_of_few()[few]()(x), kernel.ways_of_many()[many]()(x)
    assert not torch.equal(by_few, by_many)
    kernel.choose(WayChoice(few, many, many_from=8))
    assert torch.equal(kernel(x), by_many)
    assert torch.equal(kernel(x[:7]), by_few[:7])
    assert kernel.num_invariant_rows == 7
    kernel.choose(WayChoice(few, many, many_from=9))
    assert torch.equal(kernel(x), by_few)
    assert torch.equal(kernel.product_of_many()(x), by_many)  # however few


@pytest.mark.parametrize(("backend", "bits", "group"), CASES)
def test_where_rows_are_never_many_each_is_still_as_alone(backend, bits, group):
    kernel = prepared(backend, bits, group)
    for few in kernel.ways_of_few():
        kernel.choose(WayChoice(few, few, None))
        assert kernel.num_invariant_rows is None
        x = rows(300)
        alone = torch.cat([kernel(row.unsqueeze(0).clone()) for row in x])
        assert torch.equal(kernel(x), alone)
        assert torch.equal(kernel.product_of_many()(x), alone)


def test_a_way_that_a_kernel_has_not_is_refused():
    kernel = prepared(*CASES[0])
    before = kernel.choice
    for choice in (WayChoice("tiles", "tiles", 4), WayChoice("int4pack", "dense", 4)):
        with pytest.raises(ValueError, match="no such ways"):
            kernel.choose(choice)
    assert kernel.choice == before


def test_kernels_in_cpp_are_ways_where_they_are_loaded_and_are_taken_if_chosen(monkeypatch):
    multiplied = []

    def multiply(weight, x):
        multiplied.append((weight.num_planes, tuple(x.shape), x.dtype))
        return x.new_zeros(len(x), weight.out_features)

    monkeypatch.setattr(library, "is_loaded", lambda: True)
    monkeypatch.setattr(int4_blocks, "block_size", lambda: 64)
    monkeypatch.setattr(block_kernel.int4, "multiply", multiply)
    for backend, bits, group in CASES[:2]:
        kernel = prepared(backend, bits, group)
        assert (kernel.choice.few, kernel.choice.many) == ("int4pack", kernel_name(backend))
        assert "native tiles" in kernel.ways_of_many()
        kernel.choose(WayChoice("native", "native", None))
        assert kernel(rows(3).half()).dtype == torch.float16
    assert multiplied == [(1, (3, 256), torch.bfloat16), (2, (3, 256), torch.bfloat16)]
    monkeypatch.setattr(int4_blocks, "block_size", lambda: 32)  # as without AVX-512
    assert native_ways(prepared(*CASES[0])) == set()


def native_ways(kernel):
    names = {**kernel.ways_of_few(), **kernel.ways_of_many()}
    return {name for name in names if name.startswith("native")}


def test_without_kernels_in_cpp_there_is_no_such_way(monkeypatch):
    monkeypatch.setattr(library, "is_loaded", lambda: False)
    assert native_ways(prepared(*CASES[0])) == set()
