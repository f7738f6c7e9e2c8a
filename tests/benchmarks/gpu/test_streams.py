"""Decoding and reading are counted right, on a model small enough to know."""

from __future__ import annotations

import time

from benchmarks.gpu.streams import (
    Bound,
    greedy,
    measure_decode,
    measure_prefill,
    run_to_the_end,
)
from tests.engine.tiny_models import FUSED, generate, make_engine, make_model, make_prompts


def test_decoding_counts_one_token_for_each_sequence_and_step():
    engine = make_engine(make_model(FUSED["llama"]))
    began = time.perf_counter()
    rate = measure_decode(engine, make_prompts(20, 20, 20), Bound(repetitions=10, seconds=60))
    took = time.perf_counter() - began
    assert rate.num_steps == 10
    assert rate.tokens_per_s > 30 / took  # all that the call took is more than those steps did
    assert 25 < rate.context < 40
    assert not engine.has_work


def test_decoding_ends_when_its_time_is_over():
    engine = make_engine(make_model(FUSED["llama"]))
    rate = measure_decode(engine, make_prompts(5), Bound(repetitions=20, seconds=0.0))
    assert rate.num_steps == 1


def test_a_prompt_is_read_as_often_as_time_allows():
    engine = make_engine(make_model(FUSED["llama"]), has_prefix_cache=False)
    made: list[list[int]] = []

    def make_prompt() -> list[int]:
        made.extend(make_prompts(30, seed=len(made)))
        return made[-1]

    assert measure_prefill(engine, make_prompt, Bound(repetitions=3, seconds=60)) > 0
    assert len(made) == 4  # one warms up


def test_answers_are_those_of_the_model():
    model, prompts = make_model(FUSED["llama"]), make_prompts(7, 12)
    expected = [generate(model, prompt, 8) for prompt in prompts]
    assert run_to_the_end(make_engine(model), prompts, greedy(8)) == expected
