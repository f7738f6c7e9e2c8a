from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch

from native import attention
from native.attention import HEAD_DIMS, MAX_SHARED, Sequences
from tests.native import kernels, reference
from tests.native.paged import BLOCK_SIZE, last_rows, make_tables, slots_of

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = kernels.needed

KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 300, 16, 17, 128, 129, 63, 5, 257)
WINDOWS = (None, 1, 9, 64, 200)
# Kernels are compiled for each width and type; windows are numbers to them.
CASES = (
    *product((None,), HEAD_DIMS, KV_DTYPES),
    *product(WINDOWS[1:], (64,), KV_DTYPES[:1]),
)
# Rows, first position, sequence: pieces anywhere, several of one sequence, some of one row.
PIECES = ((20, 0, 0), (1, 299, 1), (64, 16, 2), (70, 130, 1), (37, 91, 3), (1, 0, 4), (130, 3, 5))
PIECE_LENGTHS = (20, 300, 80, 128, 1, 133)


def cache_of(num_slots: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(num_slots, 2, num_kv_heads, head_dim).to(dtype)


@pytest.mark.parametrize(("window", "head_dim", "kv_dtype"), CASES)
def test_rows_attend_to_their_own_sequences(
    window: int | None, head_dim: int, kv_dtype: torch.dtype
):
    tables, num_slots = make_tables(LENGTHS)
    cache = cache_of(num_slots, 3, head_dim, kv_dtype)
    query = torch.randn(len(LENGTHS), 9, head_dim)
    seen = last_rows(tables, LENGTHS)
    got = attention.attend_rows(query, cache, seen, scale=0.2, window=window)
    wanted = reference.attend_rows(query, cache, seen, scale=0.2, window=window)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("group", range(1, 9))
def test_up_to_eight_query_heads_share_a_key_head(group: int):
    tables, num_slots = make_tables((150, 3))
    for num_kv_heads in (1, 2):
        cache = cache_of(num_slots, num_kv_heads, 64, torch.float32)
        query = torch.randn(2, num_kv_heads * group, 64)
        seen = last_rows(tables, (150, 3))
        got = attention.attend_rows(query, cache, seen, scale=0.125, window=None)
        wanted = reference.attend_rows(query, cache, seen, scale=0.125, window=None)
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)
        check_pieces(query[:1], cache, tables, ((1, 140, 0),))


def test_more_query_heads_than_are_told_of_are_refused():
    tables, num_slots = make_tables((3,))
    cache, seen = cache_of(num_slots, 1, 64, torch.float32), last_rows(tables, (3,))
    query = torch.randn(1, MAX_SHARED, 64)
    got = attention.attend_rows(query, cache, seen, scale=0.125, window=None)
    wanted = reference.attend_rows(query, cache, seen, scale=0.125, window=None)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)
    with pytest.raises(RuntimeError, match=f"at most {MAX_SHARED} times"):
        attention.attend_rows(
            torch.randn(1, MAX_SHARED + 1, 64), cache, seen, scale=0.125, window=None
        )


def test_rows_of_one_sequence_each_see_up_to_themselves():
    """So it is with a draft behind a last token."""
    tables, num_slots = make_tables((40, 300))
    cache = cache_of(num_slots, 2, 64, torch.float32)
    rows, positions = torch.tensor([1, 1, 1, 0, 1]), torch.tensor([250, 251, 252, 39, 0])
    seen = Sequences(tables, rows, positions, BLOCK_SIZE)
    query = torch.randn(5, 4, 64)
    got = attention.attend_rows(query, cache, seen, scale=0.125, window=None)
    wanted = reference.attend_rows(query, cache, seen, scale=0.125, window=None)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("block_size", [1, 4, 7, 64])
def test_blocks_may_have_any_size(block_size: int):
    tables, num_slots = make_tables((150, 33), block_size=block_size)
    cache = cache_of(num_slots, 2, 64, torch.float32)
    seen = Sequences(tables, torch.arange(2), torch.tensor([149, 32]), block_size)
    query = torch.randn(2, 4, 64)
    got = attention.attend_rows(query, cache, seen, scale=0.125, window=None)
    wanted = reference.attend_rows(query, cache, seen, scale=0.125, window=None)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)
    check_pieces(torch.randn(43, 4, 64), cache, tables, ((10, 23, 1), (33, 100, 0)), block_size)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_row_has_the_same_bits_alone_and_among_others(
    window: int | None, kv_dtype: torch.dtype, num_threads: int
):
    tables, num_slots = make_tables(LENGTHS)
    cache = cache_of(num_slots, 3, 64, kv_dtype)
    query = torch.randn(len(LENGTHS), 9, 64)
    seen = last_rows(tables, LENGTHS)
    together = attention.attend_rows(query, cache, seen, scale=0.125, window=window)
    for row, length in enumerate(LENGTHS):
        table = tables[row : row + 1, : -(-length // BLOCK_SIZE)].clone()
        own = last_rows(table, (length,))
        alone = attention.attend_rows(query[row : row + 1], cache, own, scale=0.125, window=window)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("window", [None, 9, 200])
def test_what_a_row_does_not_see_never_reaches_it(window: int | None):
    tables, num_slots = make_tables(LENGTHS)
    cache = cache_of(num_slots, 2, 64, torch.float32)
    query = torch.randn(len(LENGTHS), 4, 64)
    seen = last_rows(tables, LENGTHS)
    wanted = attention.attend_rows(query, cache, seen, scale=0.125, window=window)
    for row, length in enumerate(LENGTHS):
        first = 0 if window is None else max(0, length - window)
        poisoned = torch.full_like(cache, torch.nan)
        visible = slots_of(tables, row, length)[first:]
        poisoned[visible] = cache[visible]
        got = attention.attend_rows(query, poisoned, seen, scale=0.125, window=window)
        assert torch.equal(got[row], wanted[row])


@pytest.mark.parametrize("part", ["key", "value", "query"])
def test_nan_that_a_row_sees_is_not_lost(part: str):
    tables, num_slots = make_tables((150, 40))
    cache = cache_of(num_slots, 1, 64, torch.float32)
    query = torch.randn(2, 1, 64)
    if part == "query":
        query[0, 0, 3] = torch.nan
    else:
        cache[slots_of(tables, 0, 150)[70], 0 if part == "key" else 1] = torch.nan
    seen = last_rows(tables, (150, 40))
    got = attention.attend_rows(query, cache, seen, scale=0.125, window=None)
    assert bool(got[0].isnan().any())
    assert bool(got[1].isfinite().all())
    of_pieces = in_pieces(query, cache, tables, ((1, 149, 0), (1, 39, 1)))
    assert bool(of_pieces[0].isnan().any())
    assert bool(of_pieces[1].isfinite().all())


def test_large_scores_neither_overflow_nor_vanish():
    tables, num_slots = make_tables((200,))
    cache = cache_of(num_slots, 1, 64, torch.float32) * 100
    query = torch.randn(1, 1, 64) * 100
    seen = last_rows(tables, (200,))
    got = attention.attend_rows(query, cache, seen, scale=1.0, window=None)
    wanted = reference.attend_rows(query, cache, seen, scale=1.0, window=None)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def in_pieces(
    query: Tensor,
    cache: Tensor,
    tables: Tensor,
    pieces: tuple[tuple[int, int, int], ...],
    block_size: int = BLOCK_SIZE,
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return attention.attend_pieces(
        query,
        cache,
        tables,
        torch.tensor(pieces, dtype=torch.int64).view(-1, 3),
        block_size,
        scale=0.125,
        window=window,
        dtype=dtype,
    )


def check_pieces(
    query: Tensor,
    cache: Tensor,
    tables: Tensor,
    pieces: tuple[tuple[int, int, int], ...],
    block_size: int = BLOCK_SIZE,
    *,
    window: int | None = None,
) -> None:
    """Compare with the exact weights; the kernel's are rounded to bfloat16."""
    args = (tables, torch.tensor(pieces), block_size)
    told = {"scale": 0.125, "window": window, "dtype": torch.float32}
    wanted = reference.attend_pieces(query, cache, *args, **told)
    sizes = cache.clone()
    sizes[:, 1].abs_()
    allowed = reference.attend_pieces(query, sizes, *args, **told) * 2**-8 + 1e-5
    got = in_pieces(query, cache, tables, pieces, block_size, window=window)
    error = (got - wanted).abs()
    assert bool((error <= allowed).all()), (error - allowed).max()
    rounded = in_pieces(
        query, cache, tables, pieces, block_size, window=window, dtype=torch.bfloat16
    )
    assert torch.equal(rounded, got.bfloat16())


@pytest.mark.parametrize(("window", "head_dim", "kv_dtype"), CASES)
def test_pieces_attend_to_their_sequences_from_the_start(
    window: int | None, head_dim: int, kv_dtype: torch.dtype
):
    tables, num_slots = make_tables(PIECE_LENGTHS)
    cache = cache_of(num_slots, 1, head_dim, kv_dtype)
    query = torch.randn(sum(piece[0] for piece in PIECES), 3, head_dim)
    check_pieces(query, cache, tables, PIECES, window=window)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_row_has_the_same_bits_in_any_piece(window: int | None, num_threads: int):
    """A prompt of which a part was cached leaves fewer rows, which must give what they gave."""
    tables, num_slots = make_tables(PIECE_LENGTHS)
    cache = cache_of(num_slots, 3, 64, torch.float32)
    query = torch.randn(sum(piece[0] for piece in PIECES), 9, 64)
    together = in_pieces(query, cache, tables, PIECES, window=window)
    row = 0
    for num_rows, start, sequence in PIECES:
        for cut in {0, num_rows // 3, num_rows // 2, num_rows - 1}:
            length = num_rows - cut
            alone = in_pieces(
                query[row + cut : row + num_rows].clone(),
                cache,
                tables[sequence : sequence + 1].clone(),
                ((length, start + cut, 0),),
                window=window,
            )
            assert torch.equal(alone, together[row + cut : row + num_rows])
        row += num_rows


@pytest.mark.parametrize("window", [None, 9, 100])
def test_what_a_piece_does_not_see_never_reaches_it(window: int | None):
    """Its own last tokens aside: what went wrong in one of them ends the sequence."""
    tables, num_slots = make_tables((20, 133))
    cache = cache_of(num_slots, 2, 64, torch.float32)
    for num_rows, start in ((90, 40), (1, 64), (24, 40), (63, 1), (64, 64)):
        query = torch.randn(num_rows, 4, 64)
        pieces = ((num_rows, start, 1),)
        wanted = in_pieces(query, cache, tables, pieces, window=window)
        poisoned = torch.full_like(cache, torch.nan)
        first = 0 if window is None else max(0, start + 1 - window)
        visible = slots_of(tables, 1, start + num_rows)[first:]
        poisoned[visible] = cache[visible]
        assert torch.equal(in_pieces(query, poisoned, tables, pieces, window=window), wanted)


def test_no_rows_are_no_work():
    tables, num_slots = make_tables((20,))
    cache, query = cache_of(num_slots, 2, 64, torch.float32), torch.empty(0, 4, 64)
    nobody = torch.empty(0, dtype=torch.int64)
    seen = Sequences(tables, nobody, nobody, BLOCK_SIZE)
    assert attention.attend_rows(query, cache, seen, scale=1.0, window=None).shape == (0, 256)
    got = in_pieces(query, cache, tables, (), dtype=torch.bfloat16)
    assert (got.shape, got.dtype) == ((0, 256), torch.bfloat16)


def test_sixty_four_query_heads_may_share_a_key_head_and_no_more():
    cache = cache_of(64, 1, 64, torch.float32)
    seen = Sequences(torch.tensor([[0, 1]]), torch.tensor([0]), torch.tensor([20]), BLOCK_SIZE)
    query = torch.randn(1, 64, 64)
    attended = attention.attend_rows(query, cache, seen, scale=0.125, window=None)
    wanted = reference.attend_rows(query, cache, seen, scale=0.125, window=None)
    torch.testing.assert_close(attended, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="at most 64 times"):
        attention.attend_rows(torch.randn(1, 65, 64), cache, seen, scale=0.125, window=None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": torch.tensor([1])}, "no table"),
        ({"rows": torch.tensor([-1])}, "no table"),
        ({"rows": torch.tensor([0, 0])}, "a sequence and a position"),
        ({"positions": torch.tensor([32])}, "beyond its table"),
        ({"positions": torch.tensor([-1])}, "begin at 0"),
        ({"tables": torch.tensor([[0, 4]])}, "outside the cache"),
        ({"tables": torch.tensor([[-1, 1]])}, "outside the cache"),
        ({"tables": torch.tensor([[0, 2**60]])}, "outside the cache"),
        ({"tables": torch.tensor([[0, 1]], dtype=torch.int32)}, "another type"),
        ({"block_size": 0}, "a sequence and a position"),
    ],
)
def test_rows_that_would_read_elsewhere_are_refused(changes: dict[str, Any], said: str):
    cache, query = cache_of(64, 2, 64, torch.float32), torch.randn(1, 4, 64)
    seen = Sequences(torch.tensor([[0, 1]]), torch.tensor([0]), torch.tensor([20]), BLOCK_SIZE)
    with pytest.raises(RuntimeError, match=said):
        attention.attend_rows(query, cache, replace(seen, **changes), scale=0.125, window=None)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([[3, 0, 0]], "number of rows|has rows"),
        ([[5, 0, 0]], "has rows"),
        ([[4, 0, 1]], "has rows"),
        ([[4, -16, 0]], "has rows"),
        ([[4, 30, 0]], "beyond its table"),
        ([[4, 2**62, 0]], "has rows"),
        ([[2**62, 0, 0]], "has rows"),
        ([[0, 0, 0], [4, 0, 0]], "has rows"),
    ],
)
def test_pieces_that_would_read_elsewhere_are_refused(pieces: list[list[int]], said: str):
    cache, query = cache_of(64, 2, 64, torch.float32), torch.randn(4, 4, 64)
    with pytest.raises(RuntimeError, match=said):
        attention.attend_pieces(
            query,
            cache,
            torch.tensor([[0, 1]]),
            torch.tensor(pieces),
            BLOCK_SIZE,
            scale=0.125,
            window=None,
            dtype=torch.float32,
        )
