from __future__ import annotations

from typing import TYPE_CHECKING

from engine.sampling.row_plan import PlanKey, make_plan, plan_key
from engine.sampling.state import Need, SamplingState
from engine.scheduling.batch import RowExtras, SlotStart
from tests.engine.sampling_rows import CPU, mask_of, params

if TYPE_CHECKING:
    from engine.sampling_params import SamplingParams


def state_of(*settings: SamplingParams, is_graph_safe: bool = False) -> SamplingState:
    """A slot for each of the settings; every prompt has two tokens."""
    state = SamplingState(
        max_num_seqs=len(settings), vocab_size=100, device=CPU, is_graph_safe=is_graph_safe
    )
    for slot, setting in enumerate(settings):
        state.start(SlotStart(slot, slot, setting, 0, (1, 2), (), ()))
    return state


def test_a_greedy_batch_takes_nothing():
    state = state_of(params(temperature=0), params(top_k=1))
    plan = make_plan(state, [0, 1], [2, 2])
    assert plan.key == PlanKey(Need(0), None)
    assert not plan.rows
    assert not plan.changes_logits


def test_min_tokens_are_needed_only_while_there_are_fewer():
    state = state_of(params(temperature=0, min_tokens=3, eos_token_ids=frozenset({9})))
    assert [plan_key(state, [0], [at]).needs for at in (2, 4, 5)] == [
        Need.MIN_TOKENS,
        Need.MIN_TOKENS,
        Need(0),
    ]


def test_each_part_is_done_to_the_rows_that_need_it():
    state = state_of(params(temperature=0), params(), params(top_p=0.5), params(logit_bias={1: 1}))
    rows = {
        need: ids.tolist() for need, ids in make_plan(state, [3, 2, 1, 0], [2] * 4).rows.items()
    }
    assert rows == {Need.SAMPLE: [0, 1, 2], Need.LEADING: [1], Need.LOGIT_OFFSETS: [0]}
    assert not make_plan(state, [2, 2], [2, 3]).rows  # all rows need the same


def test_where_there_may_be_graphs_everything_is_done_to_all_rows():
    state = state_of(params(temperature=0), params(top_p=0.5, logprobs=2), is_graph_safe=True)
    plan = make_plan(state, [0, 1], [2, 2])
    assert not plan.rows
    assert plan.logprob_rows is None
    assert plan.key == PlanKey(Need.SAMPLE | Need.TOP_P, 2)


def test_a_graph_of_more_needs_covers_a_step_of_fewer():
    drawing = PlanKey(Need.SAMPLE | Need.TOP_P, 5)
    assert drawing.covers(PlanKey(Need.SAMPLE, None))
    assert drawing.covers(PlanKey(Need.SAMPLE, 5))
    assert not drawing.covers(PlanKey(Need.SAMPLE, 6))
    assert not drawing.covers(PlanKey(Need.SAMPLE | Need.TOP_K, None))
    assert not PlanKey(Need.SAMPLE, None).covers(PlanKey(Need.SAMPLE, 0))


def test_what_only_one_step_knows_is_told_by_its_plan():
    state = state_of(params(), params(presence_penalty=1.0))
    extras = {
        1: RowExtras(draft_token_ids=(7,)),
        2: RowExtras(draft_token_ids=(7, 8), banned_token_ids=(3,), mask=mask_of([0, 40], 100)),
    }
    plan = make_plan(state, [0, 1, 1], [5, 5, 6], extras)
    assert plan.has_extras
    assert plan.drafts is not None
    assert plan.drafts.tolist() == [7, 107, 108]  # in the two rows that have penalties
    assert plan.bans is not None
    assert plan.bans.tolist() == [203]
    assert plan.masks is not None
    assert plan.masks.rows.tolist() == [2]
    assert plan.masks.words.tolist() == [[1, 1 << 8, 0, 0]]


def test_drafts_change_nothing_where_no_penalty_counts_them():
    state = state_of(params())
    plan = make_plan(state, [0, 0], [5, 6], {1: RowExtras(draft_token_ids=(7,))})
    assert not plan.has_extras
