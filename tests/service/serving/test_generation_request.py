"""What is asked of the engine for each answer of a request."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.errors import InvalidSamplingParamsError
from engine.request import Terms
from service.serving import sampling
from service.serving.generation import start
from service.serving.generation_request import GenerationRequest, plan_choices
from service.serving.prompts import Prompt
from service.serving.sampling import SamplingOptions
from tests.service.fakes import ByteTokenizer, FakeEngine, says, served_model

PROMPTS = [Prompt([0, 5]), Prompt([0, 6]), Prompt([0, 7])]


@pytest.fixture
def model():
    tokenizer = ByteTokenizer()
    return served_model(FakeEngine(says(tokenizer, "x")), tokenizer)


def asked(max_tokens=(3, 0, 5), **options) -> GenerationRequest:
    return GenerationRequest(
        prompts=PROMPTS,
        max_tokens=list(max_tokens),
        num_choices=2,
        options=SamplingOptions(**options),
        terms=Terms(),
    )


def test_choices_of_a_prompt_stand_together_each_with_a_seed_of_its_own(model):
    choices = plan_choices(asked(seed=4), model)
    assert [choice.prompt for choice in choices] == [one for one in PROMPTS for _ in range(2)]
    assert [choice.params.seed for choice in choices] == [4, 5] * 3


def test_each_prompt_has_its_own_length_and_zero_reads_the_prompt_alone(model):
    choices = plan_choices(asked(), model)[::2]
    assert [choice.params.max_tokens for choice in choices] == [3, 1, 5]
    assert [choice.is_prompt_only for choice in choices] == [False, True, False]


def test_least_tokens_must_fit_into_each_answer(model):
    assert plan_choices(asked((3, 4, 5), min_tokens=3), model)
    with pytest.raises(InvalidSamplingParamsError, match="min_tokens is 4"):
        plan_choices(asked((3, 4, 5), min_tokens=4), model)


def test_bad_words_are_spelled_out_once_and_beside_the_event_loop(model, monkeypatch):
    """They may take a second, in which the server would answer nobody."""
    threads: list[threading.Thread] = []
    spell = sampling.bad_word_ids

    def noted(*arguments):
        threads.append(threading.current_thread())
        return spell(*arguments)

    monkeypatch.setattr(sampling, "bad_word_ids", noted)

    async def run() -> None:
        generation = await start(model, asked((3, 3, 5), bad_words=["x"]))
        await generation.aclose()

    asyncio.run(run())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
