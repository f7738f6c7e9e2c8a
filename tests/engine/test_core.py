from __future__ import annotations

import pytest

from engine.core import Engine
from engine.errors import (
    InvalidConstraintError,
    InvalidRequestError,
    InvalidTokenError,
    NotEnoughBlocksError,
    PromptTooLongError,
)
from engine.outputs import FinishReason, SequenceStarted, TokenOutput
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import VOCAB_SIZE, FakeRunner, config, request


def fake_engine(**sizes: int) -> Engine:
    return Engine.with_runner(FakeRunner(config(**sizes)), config(**sizes))


def test_a_step_launches_the_next_batch_before_it_collects_the_last():
    engine = fake_engine()
    runner = engine._runner
    assert isinstance(runner, FakeRunner)
    engine.add(request(1, 3))
    assert engine.step() == []
    assert len(runner.in_flight) == 1
    started, first = engine.step()
    assert isinstance(started, SequenceStarted)
    assert isinstance(first, TokenOutput)
    assert len(runner.batches) == 2
    assert len(runner.in_flight) == 1


def test_an_idle_engine_has_no_work():
    engine = fake_engine()
    assert not engine.has_work
    assert engine.step() == []
    engine.add(request(1, 1))
    assert engine.has_work
    while engine.has_work:
        engine.step()
    assert engine.step() == []


def test_the_models_context_bounds_an_answer():
    engine = fake_engine(max_model_len=16)
    engine.add(request(1, 10, SamplingParams(max_tokens=100, temperature=0)))
    outputs = [output for _ in range(10) for output in engine.step()]
    assert len(outputs) == 1 + 6  # that it began, and its tokens
    last = outputs[-1]
    assert isinstance(last, TokenOutput)
    assert last.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("prompt", [[-1], [VOCAB_SIZE], [0, 1, 10**9], []])
def test_ids_outside_the_vocabulary_never_reach_the_runner(prompt: list[int]):
    with pytest.raises(InvalidTokenError):
        fake_engine().add(request(1, prompt))


@pytest.mark.parametrize(
    "field",
    [
        {"stop_token_ids": frozenset({VOCAB_SIZE})},
        {"eos_token_ids": frozenset({-1})},
        {"banned_token_ids": frozenset({10**12})},
        {"allowed_token_ids": frozenset({VOCAB_SIZE})},
        {"logit_bias": {VOCAB_SIZE: 1.0}},
        {"bad_words": ((1, VOCAB_SIZE),)},
    ],
    ids=lambda field: next(iter(field)),
)
def test_ids_in_settings_are_checked_like_those_of_prompts(field: dict[str, object]):
    params = SamplingParams(max_tokens=1, **field)  # type: ignore[arg-type]
    with pytest.raises(InvalidTokenError, match="sampling settings holds token id"):
        fake_engine().add(request(1, 1, params))


def test_banning_every_token_is_refused():
    params = SamplingParams(max_tokens=1, banned_token_ids=frozenset(range(VOCAB_SIZE)))
    with pytest.raises(InvalidTokenError, match="leaves no token to pick"):
        fake_engine().add(request(1, 1, params))


def test_a_prompt_that_leaves_no_room_says_what_is_allowed():
    engine = fake_engine(max_model_len=16)
    engine.add(request(1, 15))
    with pytest.raises(PromptTooLongError, match="has 16 tokens; at most 15"):
        engine.add(request(2, 16))


def test_a_cache_too_small_for_one_sequence_is_refused():
    with pytest.raises(NotEnoughBlocksError, match="holds 60 tokens"):
        config(num_blocks=15, max_model_len=64)


def test_a_budget_smaller_than_the_number_of_sequences_is_refused():
    with pytest.raises(ValueError, match="computes at least one token"):
        config(max_num_seqs=9, max_num_batched_tokens=8)


@pytest.mark.parametrize(
    "wrong", [{"weight": 0.0}, {"weight": float("nan")}, {"timeout_s": 0.0}], ids=str
)
def test_requests_that_no_scheduler_can_honour_are_refused(wrong: dict[str, float]):
    with pytest.raises(InvalidRequestError):
        request(1, 1, **wrong)


def test_a_fresh_seed_is_drawn_where_none_is_given():
    engine = fake_engine()
    params = SamplingParams(max_tokens=1)
    assert len({engine.add(request(i, 1, params)).seed for i in range(5)}) == 5
    assert engine.add(request(9, 1, SamplingParams(max_tokens=1, seed=9))).seed == 9


def test_a_grammar_needs_an_engine_that_can_read_it():
    with pytest.raises(InvalidConstraintError, match="without structured output"):
        fake_engine().add(request(1, 1, grammar="root ::= a"))


class ToldConstraints:
    """Keeps what it is told beside each grammar, and follows none."""

    def __init__(self) -> None:
        self.told: list[tuple[set[int], int | None]] = []

    def compile(self, grammar, end_token_ids, max_tokens):
        self.told.append((set(end_token_ids), max_tokens))
        return object()


def told_of(**settings) -> tuple[set[int], int | None]:
    """What a constraint is told of the sequence that it is for."""
    constraints, sizes = ToldConstraints(), config()
    engine = Engine.with_runner(FakeRunner(sizes), sizes, constraints=constraints)
    params = SamplingParams(max_tokens=12, eos_token_ids=frozenset({1, 2}), **settings)
    engine.compile(request(1, 1, params, grammar="root ::= a"))
    return constraints.told[0]


def test_a_text_ends_by_what_ends_its_sequence():
    assert told_of() == ({1, 2}, 12)
    assert told_of(ignore_eos=True) == (set(), 12)
    assert told_of(ignore_eos=True, stop_token_ids=frozenset({2, 3})) == ({2}, 12)


@pytest.mark.parametrize(
    "banning",
    [
        {"bad_words": ((5,),)},
        {"banned_token_ids": frozenset({5})},
        {"allowed_token_ids": frozenset({5})},
        {"min_tokens": 5},
    ],
    ids=lambda banning: next(iter(banning)),
)
def test_a_text_is_led_to_its_end_only_where_no_token_of_it_can_be_banned(banning):
    assert told_of(**banning) == ({1, 2}, None)
    assert told_of(min_tokens=4, logit_bias={5: -100.0}) == ({1, 2}, 12)
