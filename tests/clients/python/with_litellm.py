"""`litellm` by both of its names for servers like this one, and its own error classes."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import litellm
import pytest
from pydantic import BaseModel, ConfigDict

PROMPT = "Colours of the rainbow: red,"
PROVIDERS = ["openai", "hosted_vllm"]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "Rome"]
    is_capital: bool


@pytest.fixture(params=PROVIDERS)
def asked(request, server, question):
    return {
        "model": f"{request.param}/{server.model}",
        "api_base": server.base_url,
        "api_key": server.key,
        "messages": question,
        "temperature": 0,
        "max_tokens": 20,
        "num_retries": 0,
    }


def test_completion_streamed_and_not(asked):
    answer = litellm.completion(**asked)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 1
    stream = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = getattr(chunk, "usage", None) or usage
    assert text == answer.choices[0].message.content
    assert usage.completion_tokens == answer.usage.completion_tokens

    async def ask() -> str:
        stream = await litellm.acompletion(**asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == text


def test_fields_beyond_openais(asked):
    answer = litellm.completion(
        **asked | {"max_tokens": 3, "temperature": 0.5},
        top_p=0.9,
        seed=1,
        n=2,
        stop=["\n"],
        frequency_penalty=0.1,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_message_is_taken_back(asked, question):
    answer = litellm.completion(**asked)
    dialogue = [
        *question,
        answer.choices[0].message.model_dump(),
        {"role": "user", "content": "And of Italy?"},
    ]
    assert litellm.completion(**asked | {"messages": dialogue}).choices[0].message.content


def test_answer_has_the_form_of_a_model(asked):
    asked |= {"response_format": City, "max_tokens": 60}
    text = litellm.completion(**asked).choices[0].message.content
    City.model_validate_json(text)
    stream = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_calls_of_tools_streamed_and_not(asked):
    tool = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    asked |= {"tools": [tool], "tool_choice": "required", "max_tokens": 80}
    asked["parallel_tool_calls"] = False  # the demo comes to no end of calls
    answer = litellm.completion(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    built = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)))
    (streamed,) = built.choices[0].message.tool_calls
    assert streamed.function.model_dump() == call.function.model_dump()
    assert built.choices[0].finish_reason == "tool_calls"


def test_text_completion_streamed_and_not(server):
    asked = {
        "model": f"text-completion-openai/{server.model}",
        "api_base": server.base_url,
        "api_key": server.key,
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": 5,
    }
    text = litellm.text_completion(**asked).choices[0].text
    assert text
    stream = litellm.text_completion(**asked, stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in stream) == text


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompt_raises_its_own_class(server, asked, stream):
    asked["messages"] = [{"role": "user", "content": server.too_long}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**asked, stream=stream)


def test_wrong_key_and_unknown_model(asked):
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**asked | {"api_key": "sk-wrong"})
    provider = asked["model"].split("/")[0]
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked | {"model": f"{provider}/unknown"})


# ── by Anthropic's API ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def messages_asked(server, question):
    return {
        "model": f"anthropic/{server.model}",
        "api_base": server.url,
        "api_key": server.key,
        "messages": question,
        "temperature": 0,
        "max_tokens": 20,
        "num_retries": 0,
    }


def test_messages_streamed_and_not(messages_asked):
    answer = litellm.completion(**messages_asked)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 1
    text, reason = "", None
    for chunk in litellm.completion(**messages_asked, stream=True):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (text, reason) == (answer.choices[0].message.content, "stop")


def test_messages_as_they_are(server, messages_asked):
    async def ask() -> dict:  # a stream by this needs what litellm's proxy is made of
        return await litellm.anthropic.messages.acreate(**messages_asked)

    answer = asyncio.run(ask())
    assert answer["content"][0]["type"] == "text"
    assert answer["stop_reason"] == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_messages_raise_its_own_class(server, messages_asked, stream):
    messages_asked["messages"] = [{"role": "user", "content": server.too_long}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**messages_asked, stream=stream)


def test_messages_with_a_wrong_key_or_model(messages_asked):
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**messages_asked | {"api_key": "sk-wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**messages_asked | {"model": "anthropic/unknown"})


def test_messages_with_tools(messages_asked):
    tool = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    asked = {**messages_asked, "tools": [tool], "tool_choice": "required", "max_tokens": 80}
    asked["parallel_tool_calls"] = False  # the demo comes to no end of calls
    answer = litellm.completion(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    arguments = call.function.arguments
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
    streamed = ""
    for chunk in litellm.completion(**asked, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            streamed += piece.function.arguments or ""
    assert json.loads(streamed) == json.loads(arguments)


# ── by OpenAI's Responses API ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def responses_asked(server):
    return {
        "model": f"openai/{server.model}",
        "api_base": server.base_url,
        "api_key": server.key,
        "input": "What is the capital of France?",
        "temperature": 0,
        "max_output_tokens": 40,
    }


def test_responses_streamed_and_not(responses_asked):
    answer = litellm.responses(**responses_asked)
    (message,) = answer.output
    assert "Paris" in message.content[0].text
    assert answer.usage.output_tokens > 1
    events = list(litellm.responses(**responses_asked, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == message.content[0].text
    assert events[-1].type == "response.completed"


def test_responses_with_a_form(responses_asked):
    answer = litellm.responses(**{**responses_asked, "max_output_tokens": 80}, text_format=City)
    City.model_validate_json(answer.output[0].content[0].text)


def test_responses_with_tools(responses_asked):
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    more = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    asked = {**responses_asked, **more, "max_output_tokens": 80}
    (call,) = litellm.responses(**asked).output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    events = list(litellm.responses(**asked, stream=True))
    kind = "response.function_call_arguments.delta"
    assert "".join(event.delta for event in events if event.type == kind) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 °C"}
    question = {"role": "user", "content": responses_asked["input"]}
    told = litellm.responses(
        **{**asked, "input": [question, call, result], "tool_choice": "none"},
    )
    assert told.output[0].content[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_input_raises_its_own_class(server, responses_asked, stream):
    with pytest.raises(litellm.ContextWindowExceededError):
        list(litellm.responses(**{**responses_asked, "input": server.too_long}, stream=stream))


def test_responses_by_the_async_client(responses_asked):
    async def ask() -> str:
        answer = await litellm.aresponses(**responses_asked)
        stream = await litellm.aresponses(**responses_asked, stream=True)
        kind = "response.output_text.delta"
        text = "".join([event.delta async for event in stream if event.type == kind])
        assert text == answer.output[0].content[0].text
        return text

    assert "Paris" in asyncio.run(ask())
