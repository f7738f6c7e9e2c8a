"""`langchain-openai`: its chat class and its completion class."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from openai import BadRequestError
from pydantic import BaseModel, ConfigDict, Field

QUESTION = "What is the capital of France?"
PROMPT = "Colours of the rainbow: red,"


def settings(server, **others):
    return {
        "base_url": server.base_url,
        "api_key": server.key,
        "model": server.model,
        "temperature": 0,
        "max_retries": 0,
        **others,
    }


@pytest.fixture
def chat(server):
    return ChatOpenAI(**settings(server, max_tokens=20))


@pytest.fixture
def completion(server):
    return OpenAI(**settings(server, max_tokens=6))


def test_chat_invoked_and_streamed(chat):
    answer = chat.invoke(QUESTION)
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 1
    assert answer.response_metadata["finish_reason"] == "stop"
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == answer.content

    async def ask() -> str:
        return "".join([chunk.content async for chunk in chat.astream(QUESTION)])

    assert asyncio.run(ask()) == answer.content


def test_chat_streams_its_usage(server):
    chat = ChatOpenAI(**settings(server, max_tokens=4, stream_usage=True))
    whole = None
    for chunk in chat.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole.usage_metadata["output_tokens"] == 4


def test_chat_goes_on_with_its_own_answer(chat):
    first = chat.invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    again = chat.invoke([HumanMessage(QUESTION), first, HumanMessage("And of Italy?")])
    assert again.content


def test_chat_logprobs(chat):
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    entries = answer.response_metadata["logprobs"]["content"]
    assert entries[0]["token"] == "The"
    assert len(entries[0]["top_logprobs"]) == 2


def test_chat_stop_and_penalties(server):
    chat = ChatOpenAI(
        **settings(server, max_tokens=20, stop=[" is"], frequency_penalty=0.5, presence_penalty=0.5)
    )
    assert chat.invoke(QUESTION).content == "The capital of France"


def test_completion_invoked_and_streamed(completion):
    text = completion.invoke(PROMPT)
    assert text
    assert "".join(completion.stream(PROMPT)) == text
    assert asyncio.run(completion.ainvoke(PROMPT)) == text


def test_completion_of_several_prompts_with_logprobs(server):
    completion = OpenAI(**settings(server, max_tokens=3, logprobs=2))
    result = completion.generate([PROMPT, "One, two,"])
    for (generation,) in result.generations:
        told = generation.generation_info["logprobs"]
        assert "".join(told["tokens"]) == generation.text
        assert generation.generation_info["finish_reason"] == "length"
    assert result.llm_output["token_usage"]["completion_tokens"] == 6


def test_best_of_several_completions(server):
    completion = OpenAI(**settings(server, max_tokens=3, best_of=2, seed=5) | {"temperature": 1})
    assert completion.invoke(PROMPT)


def test_too_long_prompt_is_a_bad_request(server, chat):
    with pytest.raises(BadRequestError, match="maximum context length"):
        chat.invoke(server.too_long)


def test_chat_by_responses_invoked_and_streamed(server):
    chat = ChatOpenAI(**settings(server, max_tokens=40, use_responses_api=True))
    answer = chat.invoke(QUESTION)
    assert "Paris" in answer.text
    assert answer.usage_metadata["output_tokens"] > 1
    pieces = chat.stream(QUESTION)
    assert "".join(piece.text for piece in pieces) == answer.text
    again = chat.invoke([HumanMessage(QUESTION), answer, HumanMessage("And of Italy?")])
    assert again.text


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


class GetWeather(BaseModel):
    """Tells the weather of a city."""

    # Else the schema lets any others follow, and the demo writes them without end.
    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture
def calling(server):
    chat = ChatOpenAI(**settings(server, max_tokens=100))
    return chat.bind_tools([GetWeather], tool_choice="any")


def test_chat_calls_a_tool_and_is_told_its_result(server, calling):
    called = calling.invoke(QUESTION)
    (call,) = called.tool_calls
    GetWeather.model_validate(call["args"])
    assert called.invalid_tool_calls == []
    result = ToolMessage('{"sky": "clear"}', tool_call_id=call["id"])
    chat = ChatOpenAI(**settings(server, max_tokens=10))
    assert chat.invoke([HumanMessage(QUESTION), called, result]).content


def test_chat_streams_a_call(calling):
    whole = None
    for chunk in calling.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert [call["args"] for call in whole.tool_calls] == [
        call["args"] for call in calling.invoke(QUESTION).tool_calls
    ]


@pytest.fixture
def weather(server):
    """A chat whose answers are `GetWeather`, made by one of the methods."""

    def make(method: str, **options):
        chat = ChatOpenAI(**settings(server, max_tokens=100))
        if method == "json_mode":
            # By it the model is to be told of the schema in the prompt, and is bound to be JSON
            # alone: too little for the demo. Our spelling beside it binds it.
            schema = {"type": "json_object", "schema": GetWeather.model_json_schema()}
            chat = ChatOpenAI(
                **settings(server, max_tokens=100, extra_body={"response_format": schema})
            )
        return chat.with_structured_output(GetWeather, method=method, **options)

    return make


METHODS = ["function_calling", "json_schema", "json_mode"]


@pytest.mark.parametrize("method", METHODS)
def test_answers_have_the_structure_of_a_model(weather, method):
    answer = weather(method).invoke(QUESTION)
    assert isinstance(answer, GetWeather)
    *_, last = weather(method).stream(QUESTION)
    assert GetWeather.model_validate(last) == answer


@pytest.mark.parametrize("method", METHODS)
def test_raw_answers_come_beside_the_structure(weather, method):
    answer = weather(method, include_raw=True).invoke(QUESTION)
    assert isinstance(answer["parsed"], GetWeather)
    assert answer["parsing_error"] is None
    assert bool(answer["raw"].tool_calls) == (method == "function_calling")


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_strict_structure_by_responses(server, method):
    chat = ChatOpenAI(**settings(server, max_tokens=100, use_responses_api=True))
    made = chat.with_structured_output(GetWeather, method=method, strict=True)
    assert isinstance(made.invoke(QUESTION), GetWeather)


def test_tools_may_stay_uncalled_and_go_with_a_form(server):
    chat = ChatOpenAI(**settings(server, max_tokens=100))
    assert "Paris" in chat.bind_tools([GetWeather], tool_choice="none").invoke(QUESTION).content
    both = chat.with_structured_output(
        GetWeather, method="json_schema", include_raw=True, tools=[GetWeather], strict=True
    )
    answer = both.invoke(QUESTION)
    assert answer["raw"].tool_calls or isinstance(answer["parsed"], GetWeather)
