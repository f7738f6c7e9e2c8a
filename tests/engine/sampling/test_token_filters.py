from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.token_filters import (
    SCALE,
    draw,
    keep_leading,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical_p,
    to_shares,
    to_weights,
)

ROWS = st.builds(
    lambda seed, vocab_size, spread, decimals: (
        torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(seed))
        .mul(spread)
        .round(decimals=decimals)
    ),
    seed=st.integers(0, 2**32),
    vocab_size=st.sampled_from([1, 2, 97, 1000, 5003]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 40.0]),
    decimals=st.sampled_from([1, 7]),
)
PORTIONS = st.one_of(st.floats(1e-9, 1), st.sampled_from([0.5, 0.9, 1.0]))


def column(value: float, num_rows: int = 3) -> torch.Tensor:
    return torch.full((num_rows, 1), value, dtype=torch.float64)


def shares_of(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    return to_shares(logits, column(temperature, len(logits)))


def kept(shares: torch.Tensor) -> list[set[int]]:
    return [{int(token) for token in row.nonzero()} for row in to_weights(shares)]


def kept_in_order(weights: list[int], order: list[float], limit: int) -> set[int]:
    """Take tokens in that order, equal ones together, until they weigh `limit`."""
    taken: set[int] = set()
    mass = 0
    for _, equals in itertools.groupby(
        sorted(range(len(order)), key=order.__getitem__), order.__getitem__
    ):
        if mass >= limit:
            break
        found = set(equals)
        taken |= found
        mass += sum(weights[token] for token in found)
    return {token for token in taken if weights[token]}


def test_shares_are_those_of_softmax():
    logits = torch.randn(4, 300) * 3
    for temperature in (0.2, 1.0, 3.0):
        shares = shares_of(logits, temperature)
        wanted = torch.softmax(logits.double() / temperature, dim=-1)
        torch.testing.assert_close(shares.double() / shares.double().sum(-1, True), wanted)
        assert (shares.amax(-1) == SCALE).all()


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 6000))
def test_top_k_keeps_the_k_likeliest_and_their_equals(logits: torch.Tensor, top_k: int):
    shares = shares_of(logits)
    for row, found in zip(shares, kept(keep_top_k(shares, column(top_k))), strict=True):
        least = sorted(row.tolist(), reverse=True)[min(top_k, len(row)) - 1]
        assert found == {i for i, share in enumerate(row.tolist()) if share >= max(least, 1)}


@settings(max_examples=60, deadline=None)
@given(ROWS, PORTIONS)
def test_top_p_keeps_the_likeliest_until_they_have_the_mass(logits: torch.Tensor, top_p: float):
    """To the last bit: masses are whole numbers, so there is no rounding to allow for."""
    shares = shares_of(logits)
    found = kept(keep_top_p(shares, column(top_p)))
    for row, weights, found_row in zip(shares, to_weights(shares), found, strict=True):
        limit = math.ceil(weights.sum().item() * top_p) if top_p < 1 else int(weights.sum())
        assert found_row == kept_in_order(weights.tolist(), (-row).tolist(), limit)


@settings(max_examples=60, deadline=None)
@given(ROWS, PORTIONS)
def test_typical_p_keeps_the_least_surprising_until_they_have_the_mass(
    logits: torch.Tensor, typical_p: float
):
    shares = shares_of(logits)
    found = kept(keep_typical_p(shares, column(typical_p)))
    for weights, found_row in zip(to_weights(shares).tolist(), found, strict=True):
        total = sum(weights)
        probs = torch.tensor(weights, dtype=torch.float64) / total
        entropy = -torch.special.xlogy(probs, probs).sum()
        surprise = (-probs.log() - entropy).abs().tolist()
        # Nearly equal surprises may be ordered either way, and the mass be a hair more or less.
        slack = total // 10**6 + 1
        limit = math.ceil(total * typical_p)
        wide = kept_in_order(weights, surprise, limit + slack)
        narrow = kept_in_order(weights, surprise, limit - slack)
        assert max(surprise[i] for i in found_row) <= max(surprise[i] for i in wide) + 1e-6
        farthest = max((surprise[i] for i in narrow), default=0.0)
        assert found_row >= {i for i in narrow if surprise[i] < farthest - 1e-6}


def test_typical_p_may_leave_out_the_likeliest_token():
    """Meister et al. 2022: the mode of a flat distribution with one peak tells too little."""
    probs = torch.tensor([[0.4, *[0.6 / 30] * 30]])
    found = kept(keep_typical_p(shares_of(probs.log()), column(0.5, 1)))
    assert found == [set(range(1, 31))]


def test_min_p_is_measured_by_the_likeliest_token():
    shares = shares_of(torch.tensor([[0.5, 0.26, 0.24, 0.01]]).log())
    assert kept(keep_min_p(shares, column(0.5, 1))) == [{0, 1}]
    assert kept(keep_min_p(shares, column(1.0, 1))) == [{0}]


def test_equally_likely_tokens_stand_or_fall_together():
    shares = shares_of(torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]))
    assert kept(keep_top_k(shares, column(2, 1))) == [{0, 1, 2, 3}]
    assert kept(keep_top_p(shares, column(0.5, 1))) == [{0, 1, 2, 3}]
    assert kept(keep_typical_p(shares, column(0.3, 1))) == [{1, 2, 3}]


@settings(max_examples=60, deadline=None)
@given(
    ROWS,
    st.lists(st.integers(1, 6000), min_size=3, max_size=3),
    st.lists(PORTIONS, min_size=3, max_size=3),
)
def test_looking_at_the_leading_tokens_first_keeps_the_same(
    logits: torch.Tensor, top_k: list[int], top_p: list[float]
):
    shares = shares_of(logits)
    ks = torch.tensor(top_k, dtype=torch.float64).clamp(max=shares.shape[1]).unsqueeze(1)
    ps = torch.tensor(top_p, dtype=torch.float64).unsqueeze(1)
    wanted = keep_top_p(keep_top_k(shares, ks), ps)
    assert torch.equal(to_weights(keep_leading(shares, ks, ps)), to_weights(wanted))


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_neutral_settings_keep_every_bit(logits: torch.Tensor):
    shares = shares_of(logits)
    has_weight = shares >= 1
    for filtered in (
        keep_top_k(shares, column(shares.shape[1])),
        keep_top_p(shares, column(1.0)),
        keep_min_p(shares, column(0.0)),
        keep_typical_p(shares, column(1.0)),
    ):
        assert torch.equal(filtered[has_weight], shares[has_weight])


def test_something_is_always_kept():
    shares = shares_of(torch.randn(50, 1000) * 5)
    tiny = column(1e-300, 50)
    for filtered in (
        keep_top_k(shares, column(1, 50)),
        keep_top_p(shares, tiny),
        keep_typical_p(shares, tiny),
        keep_leading(shares, column(1000, 50), tiny),
    ):
        assert all(kept(filtered))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_only_tokens_that_have_a_share_are_drawn(number: float):
    shares = torch.zeros(4, 500)
    for row, tokens in enumerate(([3], [0, 499], [498], [17, 18])):
        shares[row, tokens] = SCALE
    drawn = draw(shares, column(number, 4)).tolist()
    assert drawn == [[3, 0, 498, 17], [3, 499, 498, 18]][number >= 0.5]


def test_nothing_left_or_no_number_still_gives_a_token_in_range():
    for value in (0.0, float("nan"), float("inf")):
        shares = torch.full((2, 100), value)
        for filtered in (
            shares,
            keep_top_k(shares, column(5, 2)),
            keep_top_p(shares, column(0.5, 2)),
            keep_typical_p(shares, column(0.5, 2)),
            keep_leading(shares, column(100, 2), column(0.5, 2)),
        ):
            drawn = draw(filtered, column(0.5, 2))
            assert ((drawn >= 0) & (drawn < 100)).all()
