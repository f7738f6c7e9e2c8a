"""`openai`, with tools: calls that must, may and must not come, streamed and whole."""

from __future__ import annotations

import json

import openai
import pytest
from openai.lib.streaming.chat import FunctionToolCallArgumentsDoneEvent

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "description": "Tells the time."}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
MUST_CALL = ["required", NAMED]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
def asked(server):
    return {
        "model": server.model,
        "messages": MESSAGES,
        "tools": [WEATHER, TIME],
        "temperature": 0,
        "max_tokens": 120,
    }


def fits(call) -> bool:
    """Whether a call is one of a tool, and its arguments are what the tool takes."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        return arguments.keys() == {"city", "unit"} and arguments["unit"] in (
            "celsius",
            "fahrenheit",
        )
    return call.function.name == "get_time" and isinstance(arguments, dict)


@pytest.mark.parametrize("choice", MUST_CALL, ids=["required", "named"])
@pytest.mark.parametrize("seed", range(3))
def test_call_that_must_come_does_and_fits(client, asked, choice, seed):
    asked |= {"tool_choice": choice, "temperature": 1.0, "seed": seed, "tools": [WEATHER]}
    answer = client.chat.completions.create(**asked)
    (one,) = answer.choices
    assert one.finish_reason == "tool_calls"
    assert one.message.content is None
    assert all(map(fits, one.message.tool_calls))
    assert len(one.message.tool_calls) == 1


def test_several_answers_each_have_their_own_calls(client, asked):
    asked |= {"tool_choice": NAMED, "n": 2, "temperature": 1.0, "seed": 5}
    choices = client.chat.completions.create(**asked).choices
    calls = [call for one in choices for call in one.message.tool_calls]
    assert [one.finish_reason for one in choices] == ["tool_calls"] * 2
    assert all(map(fits, calls))
    assert len({call.id for call in calls}) == len(calls) == 2


@pytest.mark.parametrize("choice", ["auto", *MUST_CALL], ids=["auto", "required", "named"])
def test_stream_says_the_same_as_the_whole_answer(client, asked, choice):
    asked |= {"tool_choice": choice, "max_tokens": 60}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason
    assert (streamed.message.content or None) == (whole.message.content or None)
    told = [
        [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        for message in (streamed.message, whole.message)
    ]
    assert told[0] == told[1]
    done = [one for one in events if isinstance(one, FunctionToolCallArgumentsDoneEvent)]
    assert [(one.name, one.arguments) for one in done] == told[0]


def test_deltas_name_a_call_once(client, asked):
    asked |= {"tool_choice": NAMED, "stream": True}
    chunks = client.chat.completions.create(**asked)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    first, *others = deltas
    assert first.id
    assert (first.index, first.type, first.function.name) == (0, "function", "get_weather")
    assert {one.index for one in others} == {0}
    assert all("id" not in one.model_fields_set for one in others)
    json.loads("".join(one.function.arguments for one in deltas))


def test_call_cut_by_length_is_none(client, asked):
    asked |= {"tool_choice": NAMED, "max_tokens": 18}
    (one,) = client.chat.completions.create(**asked).choices
    assert one.finish_reason == "length"
    assert not one.message.tool_calls
    reasons = [
        chunk.choices[0].finish_reason
        for chunk in client.chat.completions.create(**asked, stream=True)
    ]
    assert reasons[-1] == "length"


def test_without_calls_the_answer_is_text(client, asked):
    (one,) = client.chat.completions.create(**asked, tool_choice="none").choices
    assert one.message.content
    assert one.message.tool_calls is None


def test_results_are_answered(client, asked):
    first = client.chat.completions.create(**{**asked, "tool_choice": NAMED})
    message = first.choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,
        "content": [{"type": "text", "text": '{"sky": "clear", "temperature": 21}'}],
    }
    dialogue = [*MESSAGES, message, result]
    asked |= {"messages": dialogue, "max_tokens": 20}
    answer = client.chat.completions.create(**asked)
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens
    second = client.chat.completions.create(**asked, tool_choice="none")
    assert second.choices[0].message.content
    dumped = [*MESSAGES, message.model_dump(), result]  # with every null that a client keeps
    again = client.chat.completions.create(**{**asked, "messages": dumped})
    assert again.usage.prompt_tokens == answer.usage.prompt_tokens


def test_text_follows_a_schema_where_no_call_is_made(client, asked):
    schema = {
        "type": "object",
        "properties": {"degrees": {"type": "integer", "minimum": 0, "maximum": 40}},
        "required": ["degrees"],
        "additionalProperties": False,
    }
    named = {"name": "weather", "schema": schema, "strict": True}
    form = {"type": "json_schema", "json_schema": named}
    (one,) = client.chat.completions.create(**asked, response_format=form).choices
    if one.message.tool_calls:
        assert all(map(fits, one.message.tool_calls))
    else:
        assert json.loads(one.message.content).keys() == {"degrees"}


def test_functions_work_as_they_used_to(client, asked):
    del asked["tools"]
    asked |= {"functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}}
    (one,) = client.chat.completions.create(**asked).choices
    assert one.finish_reason == "function_call"
    assert json.loads(one.message.function_call.arguments).keys() == {"city", "unit"}


def test_schema_that_cannot_be_followed_is_refused_by_name(client, asked):
    odd = {"type": "object", "properties": {"a": {"type": "string", "format": "no-such-format"}}}
    tool = {"type": "function", "function": {"name": "odd", "parameters": odd}}
    asked |= {"tools": [WEATHER, tool]}
    with pytest.raises(openai.BadRequestError, match="no-such-format") as raised:
        client.chat.completions.create(**asked, tool_choice="required")
    assert raised.value.param == "tools.1.function.parameters"
    raw = client.chat.completions.with_raw_response.create(**{**asked, "max_tokens": 5})
    assert raw.headers["x-ignored-params"] == "tools.1.function.parameters"
