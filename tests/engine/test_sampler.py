from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import ScheduledBatch, ScheduledPrefill
from engine.sampler import build_sampling_input, is_finite, sample, uniform
from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU = torch.device("cpu")


def params(
    temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> SamplingParams:
    return SamplingParams(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)


def pick(
    logits: torch.Tensor, settings: Sequence[SamplingParams], seeds: Sequence[int]
) -> list[int]:
    """Sample one token a row, at position 3."""
    prefills = tuple(
        ScheduledPrefill(row, row, (0, 0, 0), (0,), p, seed)
        for row, (p, seed) in enumerate(zip(settings, seeds, strict=True))
    )
    batch = ScheduledBatch((), prefills)
    tokens: list[int] = sample(logits, build_sampling_input(batch, logits.shape[1], CPU)).tolist()
    return tokens


def frequencies(row: torch.Tensor, setting: SamplingParams, num_draws: int = 4000) -> torch.Tensor:
    """How often each token comes, over that many seeds."""
    drawn = pick(row.expand(num_draws, -1), [setting] * num_draws, range(num_draws))
    return torch.bincount(torch.tensor(drawn), minlength=len(row)) / num_draws


def kept_by_reference(probs: torch.Tensor, top_k: int | None, top_p: float) -> set[int]:
    """Written the plain way: sort, cut at k, cut where the mass before reaches top_p."""
    order = probs.argsort(descending=True, stable=True).tolist()[:top_k]
    total = sum(probs[i].item() for i in order) if top_k else 1.0
    kept, mass = set(), 0.0
    for token in order:
        if mass >= top_p * total:
            break
        kept.add(token)
        mass += probs[token].item()
    return kept


def mix(bits: int) -> int:
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
    return bits ^ (bits >> 31)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_the_random_stream_is_a_fixed_function_of_seed_and_position(seed: int, position: int):
    """Held to unbounded integers: no answer may change with a new version of torch."""
    wanted = (mix((mix(seed) + position * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53
    assert uniform(torch.tensor([seed]), torch.tensor([position])).item() == wanted


@pytest.mark.parametrize("along", ["positions of one seed", "seeds at one position"])
def test_the_random_stream_is_spread_evenly(along: str):
    many, one = torch.arange(20000), torch.full((20000,), 5)
    drawn = uniform(one, many) if along == "positions of one seed" else uniform(many, one)
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    counts = torch.histc(drawn, bins=20, min=0, max=1)
    assert (counts - 1000).abs().max() < 150  # five standard deviations
    neighbours = torch.corrcoef(torch.stack((drawn[:-1], drawn[1:])))[0, 1]
    assert neighbours.abs() < 0.03


def test_greedy_rows_take_the_most_likely_token():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 2.0]])
    assert pick(logits, [params(temperature=0), params(top_k=1)], [1, 1]) == [1, 0]


def test_a_tiny_temperature_is_nearly_greedy():
    logits = torch.randn(8, 1000) * 1e4
    tokens = pick(logits, [params(temperature=1e-300)] * 8, range(8))
    assert tokens == logits.argmax(-1).tolist()


def test_tokens_come_as_often_as_their_probability_says():
    row = torch.tensor([0.0, 1.0, 2.0, -1.0, float(-30)])
    for temperature in (0.5, 1.0, 2.0):
        wanted = torch.softmax(row / temperature, dim=0)
        got = frequencies(row, params(temperature))
        torch.testing.assert_close(got, wanted, atol=0.03, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    top_k=st.one_of(st.none(), st.integers(1, 300)),
    top_p=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99, 1.0]),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 50),
)
def test_only_what_top_k_and_top_p_keep_is_drawn(
    top_k: int | None, top_p: float, spread: float, seed: int
):
    row = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * spread
    probs = torch.softmax(row, dim=0)
    kept = kept_by_reference(probs, top_k, top_p)
    got = frequencies(row, params(1.0, top_k, top_p), num_draws=500)
    assert {int(token) for token in got.nonzero()} <= kept
    wanted = torch.zeros(200)
    wanted[list(kept)] = probs[list(kept)] / probs[list(kept)].sum()
    assert (got - wanted).abs().max() < 0.11  # five standard deviations


def test_equally_likely_tokens_stand_or_fall_together():
    row = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    got = frequencies(row, params(top_k=2), num_draws=500)
    assert (got > 0).tolist() == [True, True, True, True, False]


def test_a_nucleus_wider_than_the_first_look_is_found():
    """A flat row of 2 000: half of it is far more than the share looked at first."""
    row = torch.linspace(0, 0.5, 2000)
    probs = torch.softmax(row, dim=0)
    kept = kept_by_reference(probs, None, 0.5)
    got = frequencies(row, params(top_p=0.5))
    assert {int(token) for token in got.nonzero()} <= kept
    assert len(kept) > 800


SETTINGS = st.builds(
    params,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.one_of(st.none(), st.integers(1, 120)),
    top_p=st.sampled_from([0.05, 0.6, 0.95, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(SETTINGS, st.integers(0, 2**63 - 1)), min_size=1, max_size=9))
def test_a_rows_token_does_not_depend_on_the_rows_beside_it(
    rows: list[tuple[SamplingParams, int]],
):
    """Flat rows among them, which send their mates through the full sort too."""
    generator = torch.Generator().manual_seed(len(rows))
    logits = torch.randn(len(rows), 997, generator=generator).mul(3).round(decimals=1)
    logits[::3] *= 0.01
    together = pick(logits, [p for p, _ in rows], [seed for _, seed in rows])
    alone = [pick(logits[i : i + 1], [p], [seed])[0] for i, (p, seed) in enumerate(rows)]
    assert together == alone


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_is_found_and_harms_no_other(bad: float):
    logits = torch.randn(8, 100)
    settings = [
        params(temperature=0),
        params(),
        params(top_k=5),
        params(top_p=0.5),
    ] * 2
    clean = pick(logits, settings, range(8))
    logits[:4, 37] = bad
    assert is_finite(logits).tolist() == [False] * 4 + [True] * 4
    tokens = pick(logits, settings, range(8))
    assert tokens[4:] == clean[4:]
    assert all(0 <= token < 100 for token in tokens)


def test_rows_that_are_nothing_but_nan_stay_in_range():
    logits = torch.full((4, 100), float("nan"))
    tokens = pick(
        logits, [params(), params(top_k=5), params(top_p=0.5), params(top_k=5, top_p=0.5)], range(4)
    )
    assert all(0 <= token < 100 for token in tokens)


def test_a_greedy_batch_needs_no_settings():
    batch = ScheduledBatch((), (ScheduledPrefill(0, 0, (1,), (0,), params(temperature=0), 1),))
    assert build_sampling_input(batch, 100, CPU) is None
