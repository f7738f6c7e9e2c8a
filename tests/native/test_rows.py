from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from native import rows
from native.rows import HeadNorm
from tests.native import kernels, reference

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = kernels.needed

NUM_ROWS = (1, 7, 70)
WIDTHS = (8, 31, 48, 100, 576, 1030)
DTYPES = (torch.float32, torch.bfloat16)
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 96, 128, 256)
CACHE_SLOTS = 90
MAX_POSITIONS = 300


def close(got: Tensor, wanted: Tensor) -> None:
    """As near as the dtype lets it be: rounded twice, once from float32."""
    assert got.dtype == wanted.dtype
    rtol = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[got.dtype]
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_a_norm_is_that_of_the_sum(num_rows: int, width: int, dtype: torch.dtype):
    residual, weight = torch.randn(num_rows, width), torch.randn(width)
    for delta in (None, torch.randn(num_rows, width), torch.randn(num_rows, width).bfloat16()):
        mine, theirs = residual.clone(), residual.clone()
        got = rows.add_norm(mine, delta, weight, 1e-5, dtype)
        close(got, reference.add_norm(theirs, delta, weight, 1e-5, dtype))
        assert torch.equal(mine, theirs)


def test_a_norm_of_nearly_nothing_is_bounded_by_eps():
    residual = torch.full((2, 64), 1e-6)
    got = rows.add_norm(residual, None, torch.ones(64), 1e-3, torch.float32)
    close(got, torch.full((2, 64), 1e-6 * (1e-12 + 1e-3) ** -0.5))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_norm_of_a_row_has_the_same_bits_alone_and_among_others(width: int, num_threads: int):
    residual, delta, weight = torch.randn(70, width), torch.randn(70, width), torch.randn(width)
    sums = residual.clone()
    together = rows.add_norm(sums, delta, weight, 1e-5, torch.float32)
    for row in range(70):
        own = residual[row : row + 1].clone()
        alone = rows.add_norm(own, delta[row : row + 1], weight, 1e-5, torch.float32)
        assert torch.equal(alone[0], together[row])
        assert torch.equal(own[0], sums[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_silu_of_the_gate_times_up(num_rows: int, width: int, dtype: torch.dtype):
    gate_up = (torch.randn(num_rows, 2 * width) * 4).to(dtype)
    given = gate_up.clone()
    close(rows.silu_mul(gate_up), reference.silu_mul(gate_up))
    assert torch.equal(gate_up, given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_far_from_zero_give_all_or_nothing(dtype: torch.dtype):
    gates = torch.tensor([[-1e4, -200.0, -90.0, 90.0, 200.0, 1e4, 0.0, -0.0]], dtype=dtype)
    got = rows.silu_mul(torch.cat((gates, torch.full_like(gates, 2.0)), dim=1))
    torch.testing.assert_close(got, 2 * gates.clamp(min=0), atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_activation_has_the_same_bits_alone_and_among_others(width: int, num_threads: int):
    gate_up = torch.randn(70, 2 * width)
    together = rows.silu_mul(gate_up)
    for row in range(70):
        assert torch.equal(rows.silu_mul(gate_up[row : row + 1])[0], together[row])


def head_norm_of(head_dim: int) -> HeadNorm:
    return HeadNorm(query=torch.randn(head_dim), key=torch.randn(head_dim), eps=1e-6)


def places(num_rows: int) -> tuple[Tensor, Tensor]:
    """Positions, several alike, and slots in no order."""
    return torch.randint(MAX_POSITIONS, (num_rows,)), torch.randperm(CACHE_SLOTS)[:num_rows]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("has_norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 5, 70])
def test_queries_are_rotated_and_keys_and_values_lie_in_their_slots(
    num_rows: int, dtype: torch.dtype, has_norm: bool, head_dim: int, kv_dtype: torch.dtype
):
    num_heads, num_kv_heads = 6, 2
    qkv = torch.randn(num_rows, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    rotation = torch.randn(MAX_POSITIONS, 2, head_dim)
    positions, slots = places(num_rows)
    head_norm = head_norm_of(head_dim) if has_norm else None
    mine = torch.randn(CACHE_SLOTS, 2, num_kv_heads, head_dim).to(kv_dtype)
    theirs, before = mine.clone(), mine.clone()
    args = (qkv.clone(), rotation, positions, slots)
    query = rows.rotate_and_store(*args, mine, num_heads=num_heads, head_norm=head_norm)
    args = (qkv, rotation, positions, slots)
    wanted = reference.rotate_and_store(*args, theirs, num_heads=num_heads, head_norm=head_norm)
    assert query.shape == (num_rows, num_heads, head_dim)
    close(query, wanted)
    close(mine, theirs)
    assert torch.equal(mine[slots, 1], theirs[slots, 1])  # values are stored as they are
    others = torch.ones(CACHE_SLOTS, dtype=torch.bool).index_fill_(0, slots, False)
    assert torch.equal(mine[others], before[others])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_rotated_row_has_the_same_bits_alone_and_among_others(head_dim: int, num_threads: int):
    qkv = torch.randn(70, 8 * head_dim)
    rotation = torch.randn(MAX_POSITIONS, 2, head_dim)
    positions, slots = places(70)
    head_norm = replace(head_norm_of(head_dim), eps=1e-3)
    cache = torch.zeros(CACHE_SLOTS, 2, 2, head_dim)
    together = rows.rotate_and_store(
        qkv.clone(), rotation, positions, slots, cache, num_heads=4, head_norm=head_norm
    )
    for row in range(70):
        own = torch.zeros_like(cache)
        alone = rows.rotate_and_store(
            qkv[row : row + 1].clone(),
            rotation,
            positions[row : row + 1],
            slots[row : row + 1],
            own,
            num_heads=4,
            head_norm=head_norm,
        )
        assert torch.equal(alone[0], together[row])
        assert torch.equal(own[slots[row]], cache[slots[row]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype: torch.dtype):
    """It is what tells that a sequence went wrong, and must neither spread nor be lost."""
    residual = torch.randn(3, 100)
    residual[1, 7] = torch.nan
    normed = rows.add_norm(residual.clone(), None, torch.ones(100), 1e-5, dtype)
    assert normed.isnan().all(dim=1).tolist() == [False, True, False]
    assert normed.isnan().any(dim=1).tolist() == [False, True, False]
    product = rows.silu_mul(residual.to(dtype))
    assert product.isnan().sum(dim=1).tolist() == [0, 1, 0]


def test_no_rows_are_no_work():
    nothing = torch.empty(0, 64)
    assert rows.add_norm(nothing, nothing, torch.ones(64), 1e-5, torch.float32).shape == (0, 64)
    assert rows.silu_mul(nothing).shape == (0, 32)
    indices = torch.empty(0, dtype=torch.int64)
    cache = torch.ones(4, 2, 1, 64)
    query = rows.rotate_and_store(
        torch.empty(0, 256),
        torch.ones(8, 2, 64),
        indices,
        indices,
        cache,
        num_heads=2,
        head_norm=None,
    )
    assert query.shape == (0, 2, 64)
    assert torch.equal(cache, torch.ones_like(cache))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta": torch.randn(3, 64)}, "another shape"),
        ({"weight": torch.ones(32)}, "another width"),
        ({"dtype": torch.float16}, "must be float32 or bfloat16"),
        ({"residual": torch.randn(2, 64).bfloat16()}, "another type"),
    ],
)
def test_a_norm_of_what_does_not_fit_is_refused_and_changes_nothing(
    changes: dict[str, Any], said: str
):
    told = {
        "residual": torch.randn(2, 64),
        "delta": torch.randn(2, 64),
        "weight": torch.ones(64),
        "dtype": torch.float32,
    } | changes
    before = told["residual"].clone()
    with pytest.raises(RuntimeError, match=said):
        rows.add_norm(told["residual"], told["delta"], told["weight"], 1e-5, told["dtype"])
    assert torch.equal(told["residual"], before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qkv": torch.randn(2, 64)}, "other heads"),
        ({"rotation": torch.rand(8, 2, 32)}, "rotation is"),
        ({"positions": torch.tensor([0, 8])}, "a position is too large"),
        ({"positions": torch.tensor([0, -1])}, "a position is too large"),
        ({"slots": torch.tensor([0, 16])}, "a slot lies outside"),
        ({"slots": torch.tensor([-1, 0])}, "a slot lies outside"),
        ({"slots": torch.tensor([0])}, "a position and a slot"),
        ({"kv_layer": torch.zeros(16, 2, 1, 64, dtype=torch.float64)}, "must be kept as"),
    ],
)
def test_rows_that_would_be_stored_elsewhere_are_refused(changes: dict[str, Any], said: str):
    told = {
        "qkv": torch.randn(2, 4 * 64),
        "rotation": torch.rand(8, 2, 64),
        "positions": torch.tensor([0, 1]),
        "slots": torch.tensor([0, 1]),
        "kv_layer": torch.zeros(16, 2, 1, 64),
    } | changes
    with pytest.raises(RuntimeError, match=said):
        rows.rotate_and_store(**told, num_heads=2, head_norm=None)


def test_norms_of_heads_of_another_width_are_refused():
    for query, key in ((32, 64), (64, 32), (128, 64)):
        norm = HeadNorm(torch.ones(query), torch.ones(key), 1e-6)
        with pytest.raises(RuntimeError, match="as wide as the head"):
            rows.rotate_and_store(
                torch.randn(2, 4 * 64),
                torch.rand(8, 2, 64),
                torch.tensor([0, 1]),
                torch.tensor([0, 1]),
                torch.zeros(16, 2, 1, 64),
                num_heads=2,
                head_norm=norm,
            )


def test_gates_without_a_half_are_refused():
    with pytest.raises(RuntimeError, match="one width"):
        rows.silu_mul(torch.randn(2, 33))
