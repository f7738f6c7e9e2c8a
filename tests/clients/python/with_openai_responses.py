"""`openai`'s Responses API, as its users call it: answers, streams, parsed objects, errors."""

from __future__ import annotations

import asyncio
import json
import re

import openai
import pytest
from pydantic import BaseModel, ConfigDict

QUESTION = "What is the capital of France?"
NUM_TOKENS = 40  # enough for the answer to end by itself


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: str
    country: str


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
def asked(server):
    return {
        "model": server.model,
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": NUM_TOKENS,
    }


def ignored_fields(raw) -> set[str]:
    return set(re.split(r"[,\s]+", raw.headers.get("x-ignored-params", ""))) - {""}


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def test_question_is_answered(client, asked):
    answer = client.responses.create(**asked)
    assert "Paris" in answer.output_text
    assert (answer.status, answer.object, answer.store) == ("completed", "response", False)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.input_tokens_details.cached_tokens >= 0
    assert answer.usage.output_tokens_details.reasoning_tokens == 0


def test_chat_and_responses_say_the_same(client, asked):
    chat = client.chat.completions.create(
        model=asked["model"],
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=NUM_TOKENS,
    )
    assert client.responses.create(**asked).output_text == chat.choices[0].message.content


def test_answer_that_is_cut_says_so(client, asked):
    answer = client.responses.create(**{**asked, "max_output_tokens": 2})
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_output_is_taken_back_as_input(client, asked):
    first = client.responses.create(**asked)
    items = [{"role": "user", "content": QUESTION}, *first.output]
    items.append({"role": "user", "content": [{"type": "input_text", "text": "And of Italy?"}]})
    raw = client.responses.with_raw_response.create(**{**asked, "input": items})
    assert ignored_fields(raw) == set()
    assert raw.parse().usage.input_tokens > first.usage.input_tokens


def test_logprobs_of_each_token(client, asked):
    answer = client.responses.create(
        **asked, include=["message.output_text.logprobs"], top_logprobs=2
    )
    (part,) = answer.output[0].content
    assert b"".join(bytes(one.bytes) for one in part.logprobs).decode() == part.text
    assert {len(one.top_logprobs) for one in part.logprobs} == {2}


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def test_stream_tells_each_change_and_says_the_same(client, asked):
    whole = client.responses.create(**asked).output_text
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole == events[-1].response.output_text


def test_stream_helper_and_the_async_client(server, client, asked):
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text

    async def ask() -> str:
        async with (
            openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key) as client,
            client.responses.stream(**asked) as stream,
        ):
            return (await stream.get_final_response()).output_text

    assert asyncio.run(ask()) == final.output_text


def test_stream_can_be_left_early(client, asked):
    with client.responses.create(**{**asked, "max_output_tokens": 400}, stream=True) as stream:
        next(iter(stream))
    assert client.responses.create(**asked).output_text


# ── objects ─────────────────────────────────────────────────────────────────────────────────────


def test_object_is_parsed(client, asked):
    answer = client.responses.parse(**{**asked, "max_output_tokens": 200}, text_format=City)
    assert isinstance(answer.output_parsed, City)


def test_object_is_parsed_out_of_a_stream(client, asked):
    with client.responses.stream(**{**asked, "max_output_tokens": 200}, text_format=City) as stream:
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, City)


def test_any_object_is_json(client, asked):
    answer = client.responses.create(
        **{**asked, "max_output_tokens": 300}, text={"format": {"type": "json_object"}}
    )
    assert answer.status == "incomplete" or isinstance(json.loads(answer.output_text), dict)


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def called(asked):
    return {
        **asked,
        "input": [{"role": "user", "content": "What is the weather in Paris?"}],
        "max_output_tokens": 200,
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


def test_tool_is_called_and_its_answer_taken(client, called):
    answer = client.responses.create(**called)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, call.status, answer.status) == ("weather", "completed", "completed")
    assert isinstance(json.loads(call.arguments)["city"], str)
    found = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
    items = [*called["input"], *answer.output, found]
    raw = client.responses.with_raw_response.create(
        **{**called, "input": items, "tool_choice": "auto"}
    )
    assert ignored_fields(raw) == set()
    assert raw.parse().usage.input_tokens > answer.usage.input_tokens


def test_call_is_streamed_and_parsed(client, called):
    whole = client.responses.create(**called)
    with client.responses.stream(**called) as stream:
        events = list(stream)
        final = stream.get_final_response()
    (call,) = [item for item in final.output if item.type == "function_call"]
    assert call.parsed_arguments == json.loads(call.arguments)
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in deltas) == call.arguments
    assert [item.arguments for item in whole.output if item.type == "function_call"] == [
        call.arguments
    ]


def test_named_tool_is_called_among_several(client, called):
    other = {**WEATHER, "name": "population", "description": "Counts a city's inhabitants."}
    choice = {"type": "function", "name": "population"}
    answer = client.responses.create(**{**called, "tools": [WEATHER, other], "tool_choice": choice})
    assert [one.name for one in answer.output if one.type == "function_call"] == ["population"]


def test_custom_tool_is_called_with_a_text(client, called):
    tools = [{"type": "custom", "name": "shell", "description": "Runs a command of the shell."}]
    choice = {"type": "custom", "name": "shell"}
    answer = client.responses.create(**{**called, "tools": tools, "tool_choice": choice})
    # A weak model may write on and on: then its text is led to an end, and the call is whole.
    (call,) = [item for item in answer.output if item.type == "custom_tool_call"]
    assert (call.name, call.status) == ("shell", "completed")
    assert isinstance(call.input, str)
    assert answer.status in ("completed", "incomplete")


def test_call_that_is_cut_is_none(client, called):
    answer = client.responses.create(**{**called, "max_output_tokens": 12})
    assert answer.status == "incomplete"
    assert all(item.type != "function_call" for item in answer.output)


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def test_what_would_be_kept_is_refused(client, asked):
    with pytest.raises(openai.BadRequestError, match="keeps nothing") as caught:
        client.responses.create(**asked, previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        client.responses.retrieve("resp_1")


def test_bad_value_is_a_bad_request_that_names_the_field(client, asked):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**asked, "temperature": 5}, stream=True)
    assert caught.value.param == "temperature"


def test_too_long_dialogue_has_its_code(server, client, asked):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**asked, "input": server.too_long})
    assert caught.value.code == "context_length_exceeded"
    *_, error, failed = client.responses.create(**{**asked, "input": server.too_long}, stream=True)
    assert (error.type, error.code) == ("error", "context_length_exceeded")
    assert failed.type == "response.failed"
    assert failed.response.error.code == "context_length_exceeded"
