"""Products of many rows must not show how many there are, whatever the library does."""

from __future__ import annotations

import pytest
import torch

from engine.layers import alike
from engine.layers.alike import PIECE_ROWS, multiply_in_any_way, multiply_pieces


class Telling:
    """A weight whose products of more than so many rows round otherwise, by either way."""

    kind = "telling"

    def __init__(self, max_alike: int, *, odd_last: bool = False) -> None:
        self.in_features, self.out_features = 8, 4
        self.num_invariant_rows: int | None = 1
        self.max_alike = max_alike
        self.odd_last = (
            odd_last  # whether the last of more rows than a piece are multiplied otherwise
        )
        self.rows_of_calls: list[int] = []
        self.weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def matmul(self, x):
        return self.product_of_many()(x)

    def product_of_many(self):
        def multiply(x):
            self.rows_of_calls.append(len(x))
            out = x @ self.weight + (1e-3 if len(x) > self.max_alike else 0)
            if self.odd_last and len(x) > PIECE_ROWS:
                out[-1] *= 1.01
            return out

        return multiply


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch):
    monkeypatch.setattr(alike, "_is_alike", {})


def rows(number: int) -> torch.Tensor:
    return torch.ones(number, 8) * torch.arange(8)


def test_rows_come_out_as_in_a_piece_where_more_of_them_round_otherwise():
    weight = Telling(max_alike=PIECE_ROWS)
    alone = multiply_pieces(weight, rows(PIECE_ROWS))
    together = multiply_pieces(weight, rows(5 * PIECE_ROWS))
    assert torch.equal(together, alone.repeat(5, 1))
    weight.rows_of_calls.clear()
    multiply_pieces(weight, rows(5 * PIECE_ROWS))
    assert weight.rows_of_calls == [PIECE_ROWS] * 5


def test_all_are_multiplied_at_once_where_that_was_seen_to_change_nothing():
    weight = Telling(max_alike=1000)
    multiply_pieces(weight, rows(5 * PIECE_ROWS))
    weight.rows_of_calls.clear()
    multiply_pieces(weight, rows(5 * PIECE_ROWS))
    assert weight.rows_of_calls == [5 * PIECE_ROWS]


def test_every_number_of_rows_is_tried_by_itself():
    weight = Telling(max_alike=3 * PIECE_ROWS)
    multiply_pieces(weight, rows(2 * PIECE_ROWS))
    out = multiply_pieces(weight, rows(4 * PIECE_ROWS))
    assert torch.equal(out[:PIECE_ROWS], multiply_pieces(weight, rows(PIECE_ROWS)))


@pytest.mark.parametrize("number", [1, 15, 17, 40])
def test_a_number_that_fills_no_piece_gives_the_same_and_as_many(number):
    weight = Telling(max_alike=1000)
    expected = multiply_pieces(weight, rows(3 * PIECE_ROWS))[:number]
    assert torch.equal(multiply_pieces(weight, rows(number)), expected)
    assert all(made % PIECE_ROWS == 0 for made in weight.rows_of_calls)


def test_few_numbers_of_rows_are_multiplied():
    """A library may keep something for each."""
    weight = Telling(max_alike=10_000)
    for number in range(1, 2049, 5):
        out = multiply_pieces(weight, rows(number))
        assert len(out) == number
    assert len(set(weight.rows_of_calls)) == 40
    assert max(made for made in weight.rows_of_calls if made < 2048) == 1920


@pytest.mark.parametrize("few", [40, None])
def test_rows_of_a_kernel_for_few_are_multiplied_as_they_are(few):
    weight = Telling(max_alike=10_000)
    weight.num_invariant_rows = few
    for number in (17, 39, 40):
        multiply_in_any_way(weight, rows(number))
    assert weight.rows_of_calls == [17, 39, 40]
    multiply_in_any_way(weight, rows(41))
    assert weight.rows_of_calls[-1] == (41 if few is None else 48)


def test_few_numbers_of_rows_are_multiplied_where_any_way_will_do():
    weight = Telling(max_alike=10_000)
    for number in range(1, 2049, 5):
        asked = torch.arange(number * 8.0).reshape(number, 8)
        out = multiply_in_any_way(weight, asked)
        assert torch.allclose(out, asked @ weight.weight)
    many = {made for made in weight.rows_of_calls if made > PIECE_ROWS}
    assert len(many) == 39
    assert set(weight.rows_of_calls) - many == {1, 6, 11, 16}  # few, as they are: kernels differ


def test_rows_that_are_filled_up_are_tried_by_what_rows_may_stand_there():
    weight = Telling(max_alike=1000, odd_last=True)
    multiply_pieces(weight, rows(260))  # of 288
    out = multiply_pieces(weight, rows(288))
    assert torch.equal(out, multiply_pieces(weight, rows(PIECE_ROWS)).repeat(18, 1))


def test_one_row_without_a_finite_value_decides_nothing_for_those_that_follow():
    weight = Telling(max_alike=1000)
    broken = rows(4 * PIECE_ROWS)
    broken[3] = float("nan")
    multiply_pieces(weight, broken)
    multiply_pieces(weight, rows(4 * PIECE_ROWS))
    weight.rows_of_calls.clear()
    multiply_pieces(weight, rows(4 * PIECE_ROWS))
    assert weight.rows_of_calls == [4 * PIECE_ROWS]
