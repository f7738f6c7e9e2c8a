"""Attention by windows: a row's bits follow from its position, not from where a piece began."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from engine.attention import windows
from engine.attention.paged import ChunkRows, PagedStep, Run, attend_onward
from engine.attention.windows import (
    attend_by_products,
    attend_in_windows,
    rounds_float32,
    ways_to_attend,
)

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
# All of them, whatever this processor would be offered.
WAYS = {
    "float32 windows": attend_in_windows,
    "float32 products": partial(attend_by_products, values_as=torch.float32),
    "bfloat16 windows": partial(attend_in_windows, operands_as=torch.bfloat16),
    "bfloat16 products": partial(attend_by_products, values_as=torch.bfloat16),
}
# Of numbers as large as 4, against float64: 1e-6 and 0.02 were found (2026-11).
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.04}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)
STRETCHES = pytest.mark.parametrize(
    ("start", "stop"),
    [
        (16, 208),
        (64, 128),
        (80, 96),
        (112, 176),
        (0, 48),
        (96, 103),
        (128, 129),
        (32, 97),
        (16, 47),
    ],
)


@pytest.fixture(name="tokens")
def _tokens():
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(208, HEADS, HEAD_DIM, generator=generator)
    return query, torch.randn(208, 2, KV_HEADS, HEAD_DIM, generator=generator)


@pytest.fixture(name="has")
def _has(monkeypatch):
    """Pretend that the processor has these instructions, and only the environment given."""

    def pretend(*instructions, level="AVX512", **environment):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True)
        )
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return pretend


def assert_close(way, found, expected):
    tolerance = TOLERANCE[way.split()[0]]
    if rounds_float32():  # operands are rounded in either
        tolerance = TOLERANCE["bfloat16"]
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


@ALL_WAYS
@pytest.mark.parametrize("window", [None, 40, 100])
@pytest.mark.parametrize("start", [0, 16, 64, 80, 192])
def test_what_is_seen_is_what_is_seen_otherwise(tokens, start, window, way):
    query, seen = tokens
    expected = attend_onward(query[start:].double(), seen.double(), start, 0.25, window)
    found = WAYS[way](query[start:], seen, start, 0.25, window)
    assert found.dtype == torch.float32
    assert_close(way, found, expected)


@ALL_WAYS
@pytest.mark.parametrize("window", [None, 40])
@STRETCHES
def test_a_row_comes_out_to_the_last_bit_wherever_its_chunk_begins_and_ends(
    tokens, start, stop, window, way
):
    query, seen = tokens
    whole = WAYS[way](query, seen, 0, 0.25, window)
    part = WAYS[way](query[start:stop], seen[:stop], start, 0.25, window)
    assert torch.equal(part, whole[start:stop])


@pytest.fixture(name="many_tokens", scope="module")
def _many_tokens():
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(1408, HEADS, HEAD_DIM, generator=generator)
    return query, torch.randn(1408, 2, KV_HEADS, HEAD_DIM, generator=generator)


@pytest.mark.parametrize("way", ["float32 products", "bfloat16 products"])
@pytest.mark.parametrize("window", [None, 40, 700])
@pytest.mark.parametrize(("start", "stop"), [(560, 592), (600, 704), (650, 1100), (1090, 1408)])
def test_so_it_does_where_windows_are_multiplied_with_more_than_they_see(
    many_tokens, start, stop, window, way
):
    query, seen = many_tokens
    whole = WAYS[way](query, seen, 0, 0.25, window)
    part = WAYS[way](query[start:stop], seen[:stop], start, 0.25, window)
    assert torch.equal(part, whole[start:stop])
    wide = seen[:stop].double()
    expected = attend_onward(query[start:stop].double(), wide, start, 0.25, window)
    assert_close(way, part, expected)


def test_long_prompts_are_multiplied_in_few_sizes(monkeypatch):
    sizes = set()
    product = torch.bmm

    def noting(rows, others, **named):
        sizes.add((rows.shape, others.shape, others.stride()))
        return product(rows, others, **named)

    monkeypatch.setattr(torch, "bmm", noting)
    monkeypatch.setattr(windows, "MAX_SCORES_BYTES", 1)  # a head at a time, whatever is seen
    query, seen = torch.zeros(4096, 1, 8), torch.zeros(4096, 2, 1, 8)
    attend_by_products(query, seen, 0, 1.0, None, values_as=torch.float32)
    widths = {others[-1] for _, others, _ in sizes if others[-1] != 8}
    assert len(sizes) == 2 * len(widths) == 2 * 21
    assert all(width < num_seen * 1.25 for num_seen, width in wasted(widths))
    assert not any(width % 512 == 0 for width in widths if width > 512)


def wasted(widths):
    """Give, for each number of tokens that a window may see up to 4 096, the next of the widths."""
    return [(n, min(w for w in widths if w >= n)) for n in range(64, 4097, 64)]


@pytest.mark.parametrize("way", ["float32 products", "bfloat16 products"])
def test_heads_whose_scores_do_not_fit_are_computed_one_by_one(tokens, monkeypatch, way):
    query, seen = tokens
    at_once = WAYS[way](query, seen, 0, 0.25, None)
    # Of two heads up to 128 tokens, and of one beyond; a head of all tokens fits by itself alone.
    monkeypatch.setattr(windows, "MAX_SCORES_BYTES", 2 * (2 * 64) * 128 * 4)
    taken = []
    product = torch.bmm
    monkeypatch.setattr(
        torch,
        "bmm",
        lambda *given, **named: taken.append(len(given[0])) or product(*given, **named),
    )
    assert_close(way, WAYS[way](query, seen, 0, 0.25, None), at_once)
    assert taken == [2, 2, 2, 2, *[1] * 8]


def test_a_sliding_window_leaves_out_what_no_row_sees(tokens, monkeypatch):
    query, seen = tokens
    widths = []
    product = torch.bmm
    monkeypatch.setattr(
        torch,
        "bmm",
        lambda *given, **named: widths.append(given[1].shape[-1]) or product(*given, **named),
    )
    attend_by_products(query, seen, 0, 0.25, 40, values_as=torch.float32)
    assert widths[::2] == [64, 128, 128, 128]  # of scores; of values it is the heads' dimension


@pytest.mark.parametrize("way", ["float32 products", "bfloat16 products"])
def test_what_a_piece_does_not_see_is_not_in_what_it_gives(tokens, way):
    query, seen = tokens
    expected = WAYS[way](query[:96], seen[:96], 0, 0.25, None)
    seen = seen.clone()
    seen[80:] = 100.0
    assert torch.equal(WAYS[way](query[:96], seen[:96], 0, 0.25, None)[:80], expected[:80])


def test_products_of_others_round_as_before_even_after_an_error(tokens):
    query, seen = tokens
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    attend_by_products(query, seen, 0, 0.25, None, values_as=torch.float32)
    assert setting.fp32_precision == before
    with pytest.raises(RuntimeError):
        attend_by_products(query, seen[:, :, :, :8], 0, 0.25, None, values_as=torch.float32)
    assert setting.fp32_precision == before


def test_a_thread_that_has_done_leaves_the_products_of_another_as_they_are():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    first, second = windows._operands_may_be_rounded(), windows._operands_may_be_rounded()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert setting.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert setting.fp32_precision == before


def test_bfloat16_is_offered_only_where_it_is_multiplied_natively(has):
    has("avx512_f")
    assert list(ways_to_attend()) == ["float32 windows", "float32 products"]
    has("avx512_f", "avx512_bf16")
    assert list(ways_to_attend()) == [
        "float32 windows",
        "float32 products",
        "bfloat16 windows",
        "bfloat16 products",
    ]


def test_where_amx_would_round_them_products_are_not_called_float32(has):
    has("avx512_bf16", "amx_bf16")
    assert list(ways_to_attend()) == ["float32 windows", "bfloat16 windows", "bfloat16 products"]


@pytest.mark.parametrize(
    ("environment", "offered"),
    [
        ({}, {"bfloat16"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, {"bfloat16"}),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, {"bfloat16", "float32"}),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, {"float32"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"float32"}),
        ({"level": "AVX2"}, set()),  # which masks AMX from PyTorch, and not from oneDNN
        ({"level": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, {"float32"}),
    ],
)
def test_products_are_offered_by_what_is_masked_from_pytorch_and_from_onednn(
    has, environment, offered
):
    has("avx512_bf16", "amx_bf16", **environment)
    ways = ways_to_attend()
    assert {name.split()[0] for name in ways if name.endswith("products")} == offered
    assert ("bfloat16 windows" in ways) is ("bfloat16" in offered)


def test_a_step_takes_the_way_that_it_is_given_for_pieces_alone(tokens):
    query, seen = tokens
    asked = []

    def way(query, seen, start, scale, window):
        asked.append((query.shape[0], seen.shape[0], start, scale, window))
        return torch.zeros_like(query)

    class Cache:
        def write(self, *given):
            pass

        def read_run(self, layer_index, first_slot, num_tokens):
            return seen[:num_tokens]

    chunks = (
        ChunkRows(slice(0, 32), 64, Run(96, 0, None), is_piece=True),
        ChunkRows(slice(32, 40), 100, Run(108, 0, None)),
    )
    step = PagedStep(Cache(), torch.arange(40), (), chunks, attend_piece=way)
    attended = step.attend(0, query[:40], seen[:40], scale=0.25, window=None)
    assert asked == [(32, 96, 64, 0.25, None)]
    assert torch.equal(attended[32:], attend_onward(query[32:40], seen[:108], 100, 0.25, None))
