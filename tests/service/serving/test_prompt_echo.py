"""Prompts that answers echo are placed once, beside the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.outputs import TokenLogprobs
from service.serving import prompt_echo
from service.serving.answer_tokens import prompt_tokens
from service.serving.generation import start
from service.serving.generation_request import AnswerForm, GenerationRequest
from service.serving.prompts import Prompt
from service.serving.sampling import SamplingOptions
from tests.service.fakes import ByteTokenizer, FakeEngine, says, served_model


@pytest.fixture
def placed(monkeypatch) -> list[tuple[str, str]]:
    """The texts that were placed, and the threads that did it."""
    found: list[tuple[str, str]] = []

    def place(tokenizer, token_ids, logprobs, text):
        found.append((text, threading.current_thread().name))
        return prompt_tokens(tokenizer, token_ids, logprobs, text)

    monkeypatch.setattr(prompt_echo, "prompt_tokens", place)
    return found


def test_each_prompt_is_placed_once_however_many_answers_it_has(placed):
    tokenizer = ByteTokenizer()
    engine = FakeEngine(
        says(tokenizer, "hi"), logprobs=lambda token_id, params: TokenLogprobs(-1.0, ())
    )
    prompts = [Prompt(tokenizer.encode(text), text) for text in ("ab", "abc")]
    request = GenerationRequest(
        prompts=prompts,
        max_tokens=[2, 2],
        num_choices=4,
        options=SamplingOptions(logprobs=0, prompt_logprobs=0),
        form=AnswerForm(echoes=True, reports_tokens=True),
    )

    async def run():
        return await (await start(served_model(engine, tokenizer), request)).collect()

    choices = asyncio.run(run())
    assert [choice.text for choice in choices] == ["abhi"] * 4 + ["abchi"] * 4
    assert {tuple(token.offset for token in one.tokens) for one in choices[:4]} == {(0, 0, 1, 2, 3)}
    assert sorted(text for text, _ in placed) == ["ab", "abc"]
    assert all(name.startswith("short-text") for _, name in placed)
