from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import Engine
from engine.errors import InvalidTokenError, NotEnoughBlocksError, PromptTooLongError
from engine.outputs import FinishReason, SequenceFailure, TokenOutput
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import FakeRunner, config, expected_tokens


def fake_engine(**sizes: int) -> Engine:
    return Engine.with_runner(FakeRunner(config(**sizes)), config(**sizes))


def add(engine: Engine, prompt: list[int], params: SamplingParams) -> int:
    sequence = engine.new_sequence(prompt, params)
    engine.add(sequence)
    return sequence.sequence_id


def drain(engine: Engine) -> dict[int, list[int]]:
    """Run to the end; tokens by sequence."""
    tokens: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, TokenOutput)
            tokens.setdefault(output.sequence_id, []).append(output.token_id)
    return tokens


def check_idle(engine: Engine) -> None:
    engine.scheduler.check()
    blocks = engine.scheduler.block_manager
    assert blocks.num_free_blocks == blocks.num_blocks


def test_a_step_launches_the_next_batch_before_it_collects_the_last():
    engine = fake_engine()
    runner = engine._runner
    assert isinstance(runner, FakeRunner)
    add(engine, [1, 2, 3], SamplingParams(max_tokens=3))
    assert engine.step() == []
    assert len(runner.in_flight) == 1
    (first,) = engine.step()
    assert isinstance(first, TokenOutput)
    assert len(runner.batches) == 2
    assert len(runner.in_flight) == 1


def test_an_idle_engine_has_no_work():
    engine = fake_engine()
    assert not engine.has_work
    assert engine.step() == []
    add(engine, [1], SamplingParams(max_tokens=2))
    assert engine.has_work
    drain(engine)
    assert not engine.has_work
    check_idle(engine)


def test_tokens_feed_the_step_after_them_without_being_read():
    engine = fake_engine()
    sequence_id = add(engine, [1, 2, 3], SamplingParams(max_tokens=20))
    assert drain(engine)[sequence_id] == expected_tokens((1, 2, 3), 20, frozenset())


def test_more_sequences_than_slots_all_finish():
    engine = fake_engine(max_num_seqs=2)
    wanted = {}
    for length in range(1, 9):
        prompt = list(range(length))
        params = SamplingParams(max_tokens=length)
        wanted[add(engine, prompt, params)] = expected_tokens(tuple(prompt), length, frozenset())
    assert drain(engine) == wanted
    check_idle(engine)


def test_the_models_context_bounds_an_answer():
    engine = fake_engine(max_model_len=16)
    add(engine, [1] * 10, SamplingParams(max_tokens=100))
    outputs = [output for _ in range(10) for output in engine.step()]
    assert len(outputs) == 6
    last = outputs[-1]
    assert isinstance(last, TokenOutput)
    assert last.finish_reason is FinishReason.LENGTH
    check_idle(engine)


@pytest.mark.parametrize("prompt", [[-1], [50], [0, 1, 10**9], []])
def test_ids_outside_the_vocabulary_never_reach_the_runner(prompt: list[int]):
    engine = fake_engine()
    with pytest.raises(InvalidTokenError):
        engine.new_sequence(prompt, SamplingParams(max_tokens=1))


def test_stop_ids_outside_the_vocabulary_are_refused():
    engine = fake_engine()
    with pytest.raises(InvalidTokenError, match="stop token list holds token id 50"):
        engine.new_sequence([1], SamplingParams(max_tokens=1, stop_token_ids=frozenset({50})))


def test_a_prompt_that_leaves_no_room_says_what_is_allowed():
    engine = fake_engine(max_model_len=16)
    engine.new_sequence([1] * 15, SamplingParams(max_tokens=1))
    with pytest.raises(PromptTooLongError, match="has 16 tokens; at most 15"):
        engine.new_sequence([1] * 16, SamplingParams(max_tokens=1))


def test_a_cache_too_small_for_one_sequence_is_refused():
    with pytest.raises(NotEnoughBlocksError, match="holds 60 tokens"):
        config(num_blocks=15, max_model_len=64)


def test_a_fresh_seed_is_drawn_where_none_is_given():
    engine = fake_engine()
    fresh = {engine.new_sequence([1], SamplingParams(max_tokens=1)).seed for _ in range(5)}
    assert len(fresh) == 5
    assert engine.new_sequence([1], SamplingParams(max_tokens=1, seed=9)).seed == 9


def test_a_failed_sequence_gives_its_blocks_back():
    sizes = config()
    runner = FakeRunner(sizes, fails=lambda sequence_id, token: sequence_id == 0)
    engine = Engine.with_runner(runner, sizes)
    add(engine, [1, 2], SamplingParams(max_tokens=9))
    healthy = add(engine, [1, 2], SamplingParams(max_tokens=9))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [type(output) for output in outputs].count(SequenceFailure) == 1
    tokens = [o.token_id for o in outputs if isinstance(o, TokenOutput)]
    assert tokens == expected_tokens((1, 2), 9, frozenset())
    assert all(output.sequence_id == healthy for output in outputs[1:])
    check_idle(engine)


Action = tuple[str, int, int]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 20), st.integers(1, 50)),
        st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    actions=ACTIONS,
    max_num_seqs=st.integers(1, 4),
    budget=st.integers(1, 40),
    stops=st.frozensets(st.integers(0, 49), max_size=8),
)
def test_any_trace_of_arrivals_and_aborts_leaves_every_answer_as_it_is_alone(
    actions: list[Action], max_num_seqs: int, budget: int, stops: frozenset[int]
):
    sizes = config(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    engine = Engine.with_runner(FakeRunner(sizes), sizes)
    wanted: dict[int, list[int]] = {}
    tokens: dict[int, list[int]] = {}
    aborted: set[int] = set()

    def step() -> None:
        for output in engine.step():
            assert isinstance(output, TokenOutput)
            assert output.sequence_id not in aborted
            tokens[output.sequence_id].append(output.token_id)
        engine.scheduler.check()

    for kind, number, max_tokens in actions:
        if kind == "add":
            prompt = tuple(range(number))
            params = SamplingParams(max_tokens=max_tokens, stop_token_ids=stops)
            sequence_id = add(engine, list(prompt), params)
            tokens[sequence_id] = []
            most = min(max_tokens, sizes.max_model_len - number)
            wanted[sequence_id] = expected_tokens(prompt, most, stops)
        elif kind == "abort":
            engine.abort(number)
            aborted |= {number} & wanted.keys()  # others are not there yet
        else:
            for _ in range(number):
                step()
    while engine.has_work:
        step()

    check_idle(engine)
    for sequence_id, got in tokens.items():
        if sequence_id in aborted:
            assert got == wanted[sequence_id][: len(got)]
        else:
            assert got == wanted[sequence_id]
