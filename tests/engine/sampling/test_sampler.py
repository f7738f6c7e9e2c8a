from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.row_plan import SamplingPlan, make_plan, plan_key
from engine.sampling.sampler import sample, uniform
from engine.sampling.state import SamplingState
from engine.scheduling.batch import RowExtras, SlotStart
from tests.engine.graph_guard import NothingForTheHost
from tests.engine.sampling_rows import (
    CPU,
    Row,
    RowMaker,
    changed_by_reference,
    kept_by_reference,
    mask_of,
    params,
    pick,
    run,
    token_by_reference,
)

if TYPE_CHECKING:
    from engine.sampling_params import SamplingParams

BOTH_WAYS = pytest.mark.parametrize("is_graph_safe", [False, True], ids=["by row", "graph-safe"])


def frequencies(row: torch.Tensor, setting: SamplingParams, num_draws: int = 1500) -> torch.Tensor:
    """How often each token comes, over that many seeds."""
    drawn: list[int] = []
    for start in range(0, num_draws, 250):
        drawn += pick([Row(row, setting, seed) for seed in range(start, start + 250)])
    return torch.bincount(torch.tensor(drawn), minlength=len(row)) / num_draws


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


@BOTH_WAYS
def test_greedy_rows_take_the_most_likely_token(is_graph_safe: bool):
    rows = [
        Row(torch.tensor([0.0, 3.0, 1.0]), params(temperature=0)),
        Row(torch.tensor([2.0, 1.0, 2.0]), params(top_k=1)),
    ]
    assert pick(rows, is_graph_safe=is_graph_safe) == [1, 0]


def test_a_tiny_temperature_is_nearly_greedy():
    logits = torch.randn(8, 1000) * 1e4
    tokens = pick([Row(row, params(temperature=1e-300), seed) for seed, row in enumerate(logits)])
    assert tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature: float):
    row = torch.tensor([0.0, 1.0, 2.0, -1.0, float(-30)])
    wanted = torch.softmax(row / temperature, dim=0)
    got = frequencies(row, params(temperature=temperature))
    torch.testing.assert_close(got, wanted, atol=0.065, rtol=0)


@pytest.mark.parametrize(
    "setting",
    [
        params(top_k=30),
        params(top_p=0.7),
        params(min_p=0.1),
        params(typical_p=0.5),
        params(temperature=1.7, top_k=60, top_p=0.9, min_p=0.02, typical_p=0.8),
    ],
)
def test_what_is_kept_keeps_its_proportions(setting: SamplingParams):
    row = torch.randn(100, generator=torch.Generator().manual_seed(3))
    probs = kept_by_reference(row.tolist(), setting)
    got = frequencies(row, setting)
    assert {int(token) for token in got.nonzero()} <= set(probs)
    wanted = torch.tensor([probs.get(token, 0.0) for token in range(len(row))])
    assert (got - wanted).abs().max() < 0.065  # five standard deviations


@BOTH_WAYS
def test_rows_of_any_settings_come_to_the_token_of_the_plain_way(is_graph_safe: bool):
    """In batches of 32: some 1 500 rows, no two alike."""
    maker = RowMaker(seed=5)
    for _ in range(48):
        rows = [maker.row() for _ in range(32)]
        wanted = [token_by_reference(row) for row in rows]
        assert pick(rows, is_graph_safe=is_graph_safe) == wanted


def test_what_is_safe_for_graphs_picks_the_same_tokens():
    """Over 2 500 rows, at a vocabulary that kernels split among many threads' worth of work."""
    maker = RowMaker(seed=6, vocab_size=4099)
    for _ in range(40):
        rows = [maker.row() for _ in range(64)]
        assert pick(rows, is_graph_safe=True) == pick(rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.booleans())
def test_a_row_does_not_depend_on_the_rows_beside_it(seed: int, num: int, is_graph_safe: bool):
    maker = RowMaker(seed, vocab_size=997)
    rows = [maker.row() for _ in range(num)]
    together = run(rows, is_graph_safe=is_graph_safe)
    for i, row in enumerate(rows):
        alone = run([row])
        assert together.tokens[i] == alone.tokens[0]
        assert together.has_choice[i] == alone.has_choice[0]
        if alone.logprobs is not None and together.logprobs is not None:
            num_top = row.params.logprobs
            assert together.logprobs.picked[i] == alone.logprobs.picked[0]
            assert torch.equal(together.logprobs.top[i, :num_top], alone.logprobs.top[0])
            assert torch.equal(together.logprobs.top_ids[i, :num_top], alone.logprobs.top_ids[0])


@BOTH_WAYS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_is_found_and_harms_no_other(bad: float, is_graph_safe: bool):
    maker = RowMaker(seed=1)
    rows = [maker.row() for _ in range(64)]
    clean = pick(rows, is_graph_safe=is_graph_safe)
    for row in rows[:32]:
        row.logits[37] = bad
    sampled = run(rows, is_graph_safe=is_graph_safe)
    assert sampled.is_finite.tolist() == [False] * 32 + [True] * 32
    assert sampled.tokens[32:].tolist() == clean[32:]
    assert all(0 <= token < maker.vocab_size for token in sampled.tokens.tolist())


@BOTH_WAYS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_nothing_but_bad_stay_in_range(bad: float, is_graph_safe: bool):
    maker = RowMaker(seed=2)
    rows = [
        replace(maker.row(), logits=torch.full((maker.vocab_size,), bad), extras=None)
        for _ in range(64)
    ]
    sampled = run(rows, is_graph_safe=is_graph_safe)
    assert not sampled.is_finite.any()
    assert all(0 <= token < maker.vocab_size for token in sampled.tokens.tolist())


@BOTH_WAYS
def test_a_row_without_a_choice_is_told_from_a_bad_one(is_graph_safe: bool):
    every = tuple(range(50))
    nothing = RowExtras(mask=mask_of([], 50))
    rows = [
        Row(torch.randn(50), params(temperature=temperature, top_p=0.9), extras=extras)
        for temperature in (0, 1)
        for extras in (None, nothing, RowExtras(banned_token_ids=every))
    ]
    sampled = run(rows, is_graph_safe=is_graph_safe)
    assert sampled.is_finite.all()
    assert sampled.has_choice.tolist() == [True, False, False] * 2
    assert all(0 <= token < 50 for token in sampled.tokens.tolist())


@BOTH_WAYS
class TestWhatChangesLogits:
    def test_bias_is_added(self, is_graph_safe: bool):
        row = Row(torch.tensor([1.0, 2.0, 0.0]), params(temperature=0, logit_bias={2: 2.5}))
        assert pick([row], is_graph_safe=is_graph_safe) == [2]

    def test_only_allowed_tokens_are_picked_and_no_banned_ones(self, is_graph_safe: bool):
        setting = params(
            temperature=0,
            allowed_token_ids=frozenset({0, 1, 3}),
            banned_token_ids=frozenset({3}),
            logit_bias={3: 100.0, 2: 100.0, 1: -5.0},
        )
        row = Row(torch.tensor([0.0, 4.0, 9.0, 9.0]), setting)
        assert pick([row], is_graph_safe=is_graph_safe) == [0]

    def test_no_end_is_picked_before_min_tokens(self, is_graph_safe: bool):
        ends = {"eos_token_ids": frozenset({0}), "stop_token_ids": frozenset({1})}
        setting = params(temperature=0, min_tokens=3, **ends)
        row = Row(torch.tensor([3.0, 2.0, 1.0]), setting, prompt=(2, 2))
        rows = [replace(row, output=(2,) * num) for num in range(5)]
        assert pick(rows, is_graph_safe=is_graph_safe) == [2, 2, 2, 0, 0]

    def test_penalties_count_as_openai_says(self, is_graph_safe: bool):
        """Token 1 was generated three times, 2 is of the prompt, which only repetition minds."""
        row = Row(torch.tensor([0.0, 3.0, 2.0]), params(temperature=0), 0, (2,), (1, 1, 1))

        def picked(**penalties: float) -> int:
            changed = replace(row, params=params(temperature=0, **penalties))
            return pick([changed], is_graph_safe=is_graph_safe)[0]

        assert picked() == 1
        assert picked(presence_penalty=0.9) == 1
        assert picked(presence_penalty=1.1) == 2
        assert picked(frequency_penalty=0.3) == 1
        assert picked(frequency_penalty=0.4) == 2
        assert picked(repetition_penalty=2.0) == 1  # 1.5 to 1.0
        assert picked(repetition_penalty=2.0, presence_penalty=0.6) == 2

    def test_repetition_lowers_negative_logits_too(self, is_graph_safe: bool):
        row = Row(
            torch.tensor([-1.0, -1.5, -3.0]), params(temperature=0, repetition_penalty=2.0), 0, (0,)
        )
        assert pick([row], is_graph_safe=is_graph_safe) == [1]

    def test_an_absurd_repetition_penalty_leaves_a_choice(self, is_graph_safe: bool):
        rows = [
            Row(torch.randn(9), params(repetition_penalty=penalty), 0, tuple(range(9)))
            for penalty in (1e-300, 1e300)
        ]
        sampled = run(rows, is_graph_safe=is_graph_safe)
        assert sampled.has_choice.all()

    def test_drafts_before_a_row_count_as_generated_for_it_alone(self, is_graph_safe: bool):
        row = Row(torch.tensor([2.0, 1.9, 1.0]), params(temperature=0, frequency_penalty=0.2))
        drafted = replace(row, extras=RowExtras(draft_token_ids=(0,)))
        assert pick([row, drafted, row], is_graph_safe=is_graph_safe) == [0, 1, 0]

    def test_a_mask_of_fewer_tokens_allows_none_of_the_others(self, is_graph_safe: bool):
        """A model's vocabulary is often padded beyond its tokenizer's."""
        logits = torch.arange(100.0)
        masks = [mask_of([2, 31, 40], 64), mask_of([3, 99, 120], 128)]
        rows = [Row(logits, params(temperature=0), extras=RowExtras(mask=mask)) for mask in masks]
        assert pick(rows, is_graph_safe=is_graph_safe) == [40, 99]


def test_a_rows_settings_do_not_overwrite_the_logits_that_logprobs_tell_of():
    maker = RowMaker(seed=9)
    rows = [maker.row() for _ in range(20)]
    for row in rows:
        row.params = replace(row.params, logprobs=3)
    for is_graph_safe in (False, True):
        told = run(rows, is_graph_safe=is_graph_safe).logprobs
        assert told is not None
        tokens = pick(rows, is_graph_safe=is_graph_safe)
        for i, row in enumerate(rows):
            wanted = torch.log_softmax(row.logits, dim=0)
            torch.testing.assert_close(told.picked[i], wanted[tokens[i]])
            torch.testing.assert_close(told.top[i], wanted.topk(3).values)


def test_an_unplanned_table_is_asked_for():
    state = SamplingState(max_num_seqs=1, vocab_size=5, device=CPU)
    plan = SamplingPlan(
        replace(plan_key(state, [0], [0]), needs=~plan_key(state, [0], [0]).needs),
        torch.tensor([0]),
        torch.tensor([0]),
    )
    with pytest.raises(RuntimeError, match="reserve"):
        sample(torch.randn(1, 5), plan, state)


def test_the_graph_safe_way_does_nothing_that_a_graph_cannot_hold():
    maker = RowMaker(seed=3)
    rows = [maker.row() for _ in range(64)]
    state = SamplingState(
        max_num_seqs=64, vocab_size=maker.vocab_size, device=CPU, is_graph_safe=True
    )
    for slot, row in enumerate(rows):
        state.start(SlotStart(slot, slot, row.params, row.seed, row.prompt, row.output, ()))
    extras = {i: row.extras for i, row in enumerate(rows) if row.extras}
    plan = make_plan(state, range(64), [row.position for row in rows], extras)
    kept = torch.ones(64, dtype=torch.bool)
    with NothingForTheHost():
        sampled = sample(torch.stack([row.logits for row in rows]), plan, state)
        state.record(plan.slots, sampled.tokens, kept)


def test_a_wider_plan_in_static_buffers_samples_the_same_step_after_step():
    """As a captured graph would: the needs of all, and only the buffers' contents change."""
    maker = RowMaker(seed=4)
    rows = [replace(maker.row(), extras=None, output=()) for _ in range(12)]
    by_row, graphed = (
        SamplingState(max_num_seqs=12, vocab_size=203, device=CPU, is_graph_safe=is_graph_safe)
        for is_graph_safe in (False, True)
    )
    for slot, row in enumerate(rows):
        for state in (by_row, graphed):
            state.start(SlotStart(slot, slot, row.params, row.seed, row.prompt, (), ()))
    slots, positions = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    widest = plan_key(graphed, range(12), [0] * 12)
    static = SamplingPlan(widest, slots, positions)
    lengths = [len(row.prompt) for row in rows]
    chosen = random.Random(0)
    for _ in range(40):
        running = chosen.sample(range(12), 5)
        at = [lengths[slot] for slot in running]
        logits = torch.randn(6, 203) * 3
        plan = make_plan(by_row, running, at)
        assert widest.covers(plan.key)
        slots.copy_(torch.tensor([*running, graphed.padding_slot]))
        positions.copy_(torch.tensor([*at, 0]))
        wanted = sample(logits[:5].clone(), plan, by_row).tokens
        by_row.record(plan.slots, wanted)
        tokens = sample(logits, static, graphed).tokens
        graphed.record(slots, tokens)
        assert tokens[:5].tolist() == wanted.tolist()
        for slot in running:
            lengths[slot] += 1


def test_the_reference_agrees_with_softmax_where_nothing_is_asked():
    row = Row(torch.randn(30), params())
    probs = kept_by_reference(changed_by_reference(row), row.params)
    wanted = torch.softmax(row.logits.double(), dim=0)
    torch.testing.assert_close(torch.tensor(list(probs.values())), wanted.float())
