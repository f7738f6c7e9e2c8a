from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from engine.sampling.row_plan import make_plan, plan_key
from engine.sampling.sampler import sample
from engine.sampling.state import Need, SamplingState, needs_of
from engine.scheduling.batch import SlotStart
from tests.engine.sampling_rows import CPU, RowMaker, params

if TYPE_CHECKING:
    from engine.sampling_params import SamplingParams

EVERYTHING = params(
    temperature=0.7,
    top_k=3,
    top_p=0.4,
    min_p=0.3,
    typical_p=0.5,
    presence_penalty=2.0,
    frequency_penalty=2.0,
    repetition_penalty=5.0,
    logit_bias={1: 50.0},
    allowed_token_ids=frozenset({1, 2}),
    banned_token_ids=frozenset({2, 3}),
    min_tokens=50,
    eos_token_ids=frozenset({4}),
    logprobs=3,
)


def new_state(*, is_graph_safe: bool = False) -> SamplingState:
    return SamplingState(max_num_seqs=2, vocab_size=50, device=CPU, is_graph_safe=is_graph_safe)


def start(
    state: SamplingState,
    slot: int,
    settings: SamplingParams,
    prompt: tuple[int, ...] = (5, 6),
    output: tuple[int, ...] = (),
) -> None:
    state.start(SlotStart(7, slot, settings, 11, prompt, output, ()))


def tables(state: SamplingState) -> list[Any]:
    return [state.logit_offsets, state.is_end, state.counts, state.is_in_prompt]


def test_nothing_large_is_made_until_a_sequence_asks_for_it():
    state = new_state()
    start(state, 0, params(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9))
    assert tables(state) == [None] * 4
    start(state, 1, params(frequency_penalty=1.0))
    assert [table is not None for table in tables(state)] == [False, False, True, False]


def test_a_slots_next_sequence_inherits_nothing():
    fresh, reused = new_state(), new_state()
    for is_first in (True, False):
        if is_first:
            start(reused, 0, EVERYTHING, (1, 2, 3), (4, 5, 6))
        else:
            start(reused, 0, params(repetition_penalty=2.0), (9,), ())
    start(fresh, 0, params(repetition_penalty=2.0), (9,), ())
    fresh.reserve(~Need(0))
    assert torch.equal(fresh.settings, reused.settings)
    for wanted, found in zip(tables(fresh), tables(reused), strict=True):
        assert torch.equal(wanted, found)
    assert plan_key(fresh, [0], [1]) == plan_key(reused, [0], [1])


def test_a_plain_sequence_after_a_demanding_one_needs_nothing():
    state = new_state(is_graph_safe=True)
    start(state, 0, EVERYTHING, (1, 2, 3), (4, 5, 6))
    start(state, 0, params(temperature=0))
    key = plan_key(state, [0], [0])
    assert key.needs == Need(0)
    assert key.num_top is None


def test_counting_as_tokens_come_equals_starting_with_all_of_them():
    """A sequence that was preempted goes on as if it never had been."""
    maker = RowMaker(seed=8, vocab_size=50)
    settings = params(frequency_penalty=0.3, repetition_penalty=1.2)
    going, again = new_state(), new_state()
    output: tuple[int, ...] = ()
    start(going, 1, settings)
    for _ in range(20):
        start(again, 1, settings, output=output)
        logits = maker.row().logits.unsqueeze(0)
        plan = make_plan(going, [1], [2 + len(output)])
        token = sample(logits.clone(), plan, going).tokens
        going.record(plan.slots, token)
        assert sample(logits, plan, again).tokens == token
        output = (*output, int(token))
    assert going.counts is not None
    assert going.counts[1].sum() == 20


def test_only_the_rows_that_were_kept_are_counted():
    state = new_state()
    start(state, 0, params(presence_penalty=1.0))
    slots, tokens = torch.tensor([0, 0, 0]), torch.tensor([8, 8, 9])
    state.record(slots, tokens, torch.tensor([True, True, False]))
    assert state.counts is not None
    assert state.counts[0].nonzero().tolist() == [[8]]
    assert state.counts[0, 8] == 2


def test_greedy_rows_need_nothing_that_narrows_the_choice():
    greedy = params(temperature=0, top_k=5, top_p=0.5, min_p=0.1, typical_p=0.5)
    assert needs_of(greedy, 50) == Need(0)
    assert needs_of(params(top_k=1), 50) == Need(0)
    assert needs_of(params(top_k=50), 50) == Need.SAMPLE
    assert needs_of(EVERYTHING, 50) == ~Need(0)
