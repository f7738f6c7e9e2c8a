"""Where answers are written: those that tell of many tokens, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from pydantic import BaseModel
from starlette.requests import Request

from engine.errors import InvalidConstraintError
from engine.outputs import TokenLogprobs
from service.api.respond import MAX_REPORTED_AT_ONCE, answer
from service.errors import ClientGoneError, InvalidFieldError
from service.grammars.wanted import TextForm, TextFormKind
from service.server.lifecycle import Lifecycle
from service.serving import generation
from service.serving.generation_request import GenerationRequest
from service.serving.prompts import Prompt
from service.serving.sampling import SamplingOptions
from tests.service.fakes import (
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    FakeStream,
    api_context,
    says,
    served_model,
)


class Written(BaseModel):
    """An answer."""

    text: str


@dataclass
class Writer:
    """Remembers which threads wrote."""

    written_by: list[int] = field(default_factory=list)

    def whole(self, generation, choices) -> Written:
        self.written_by.append(threading.get_ident())
        return Written(text=choices[0].text)


@pytest.mark.parametrize("num_prompt_tokens", [2, MAX_REPORTED_AT_ONCE + 2])
def test_answers_that_tell_of_many_tokens_are_written_beside_the_event_loop(num_prompt_tokens):
    tokenizer = ByteTokenizer()
    engine = FakeEngine(
        says(tokenizer, "hi"),
        max_model_len=1024,
        logprobs=lambda token_id, params: TokenLogprobs(-1.0, ((token_id, -1.0),)),
    )
    model, writer = served_model(engine, tokenizer), Writer()
    request = GenerationRequest(
        prompts=[Prompt([5] * num_prompt_tokens)],
        max_tokens=[2],
        options=SamplingOptions(prompt_logprobs=1),
    )

    async def run() -> bytes:
        async def receive() -> dict[str, object]:
            await asyncio.Event().wait()
            return {}

        models = FakeModels(model)
        response = await answer(
            Request({"type": "http", "headers": []}, receive),
            request,
            writer,
            is_stream=False,
            model=model,
            context=api_context(Lifecycle(models), models),
        )
        return bytes(response.body)

    assert asyncio.run(run()) == b'{"text":"hi"}'
    is_large = num_prompt_tokens > MAX_REPORTED_AT_ONCE
    assert (writer.written_by == [threading.get_ident()]) is not is_large


@pytest.mark.parametrize("is_stream", [False, True])
def test_client_that_leaves_while_its_grammar_is_read_is_noticed(monkeypatch, is_stream):
    tokenizer = ByteTokenizer()
    engine = FakeEngine(says(tokenizer, "hi"))
    model = served_model(engine, tokenizer)
    request = GenerationRequest(
        prompts=[Prompt([5, 6])],
        max_tokens=[2],
        text_form=TextForm(TextFormKind.REGEX, "regex", texts=["hi"]),
    )

    async def run() -> None:
        is_submitted = asyncio.Event()

        async def accepted(stream: FakeStream) -> None:
            is_submitted.set()
            await asyncio.Event().wait()

        async def receive() -> dict[str, object]:
            await is_submitted.wait()
            return {"type": "http.disconnect"}

        monkeypatch.setattr(FakeStream, "accepted", accepted)
        models = FakeModels(model)
        await answer(
            Request({"type": "http", "headers": []}, receive),
            request,
            Writer(),
            is_stream=is_stream,
            model=model,
            context=api_context(Lifecycle(models), models),
        )

    with pytest.raises(ClientGoneError):
        asyncio.run(asyncio.wait_for(run(), 20))
    assert engine.num_aborted == 1
    assert not engine.running


def test_a_form_that_only_the_engine_refuses_is_named_by_its_field(monkeypatch):
    tokenizer = ByteTokenizer()
    engine = FakeEngine(says(tokenizer, "hi"))
    request = GenerationRequest(
        prompts=[Prompt([5, 6])],
        max_tokens=[2],
        text_form=TextForm(TextFormKind.REGEX, "guided_regex", texts=["hi"]),
    )

    async def accepted(stream: FakeStream) -> None:
        raise InvalidConstraintError("is too much for this model")

    monkeypatch.setattr(FakeStream, "accepted", accepted)
    with pytest.raises(InvalidFieldError, match="guided_regex: is too much") as refused:
        asyncio.run(generation.start(served_model(engine, tokenizer), request))
    assert refused.value.param == "guided_regex"
    assert not engine.running
