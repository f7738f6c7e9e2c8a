"""`openai`'s own reading of chat answers into objects: `.parse` and the stream helper."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Annotated

import openai
import pytest
from pydantic import BaseModel, Field

Name = Annotated[str, Field(max_length=20)]


class Kind(Enum):
    CAPITAL = "capital"
    TOWN = "town"


class Country(BaseModel):
    name: Name
    is_large: bool


class City(BaseModel):
    """A city: a reference, an enum, a number, a list, and what may be null."""

    kind: Kind
    country: Country
    rank: int = Field(ge=1, le=9)
    names: list[Name] = Field(min_length=1, max_length=1)
    river: Name | None


class GetWeather(BaseModel):
    """Tells the weather of a city."""

    city: Name
    kind: Kind


TOOL = openai.pydantic_function_tool(GetWeather, name="get_weather")
CALLED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
def asked(server, question):
    return {"model": server.model, "messages": question, "temperature": 0, "max_tokens": 150}


@pytest.fixture
def calling(asked):
    return {**asked, "tools": [TOOL], "tool_choice": CALLED, "parallel_tool_calls": False}


def test_answer_is_parsed(server, client, asked):
    (choice,) = client.chat.completions.parse(**asked, response_format=City).choices
    assert isinstance(choice.message.parsed, City)
    assert (choice.finish_reason, choice.message.refusal) == ("stop", None)

    async def ask() -> City | None:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key) as client:
            answer = await client.chat.completions.parse(**asked, response_format=City)
            return answer.choices[0].message.parsed

    assert asyncio.run(ask()) == choice.message.parsed


def test_each_of_several_answers_is_parsed(client, asked):
    asked |= {"temperature": 1.5, "seed": 3, "n": 3}
    choices = client.chat.completions.parse(**asked, response_format=City).choices
    assert [isinstance(choice.message.parsed, City) for choice in choices] == [True] * 3


def test_parsed_message_is_taken_back(client, asked, question):
    answer = client.chat.completions.parse(**asked, response_format=City)
    asked["messages"] = [*question, answer.choices[0].message, *question]
    again = client.chat.completions.parse(**asked, response_format=City)
    assert isinstance(again.choices[0].message.parsed, City)


def test_stream_is_parsed_as_it_grows(client, asked):
    whole = client.chat.completions.parse(**asked, response_format=City).choices[0].message
    with client.chat.completions.stream(**asked, response_format=City) as stream:
        events = list(stream)
        message = stream.get_final_completion().choices[0].message
    assert (message.content, message.parsed) == (whole.content, whole.parsed)
    deltas = [event for event in events if event.type == "content.delta"]
    assert "".join(event.delta for event in deltas) == whole.content
    assert all(event.parsed.items() for event in deltas if event.parsed)
    (done,) = [event for event in events if event.type == "content.done"]
    assert done.parsed == whole.parsed


def test_answer_that_is_cut_is_no_object(client, asked):
    asked["max_tokens"] = 4
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, response_format=City)
    with (
        pytest.raises(openai.LengthFinishReasonError),
        client.chat.completions.stream(**asked, response_format=City) as stream,
    ):
        list(stream)


def test_calls_are_parsed(client, calling):
    (choice,) = client.chat.completions.parse(**calling).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_streamed_calls_are_parsed(client, calling):
    (whole,) = client.chat.completions.parse(**calling).choices[0].message.tool_calls
    with client.chat.completions.stream(**calling) as stream:
        events = list(stream)
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    told = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in told) == whole.function.arguments
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    parsed = whole.function.parsed_arguments
    assert done.parsed_arguments == call.function.parsed_arguments == parsed


def test_tools_and_a_form_go_together(client, asked):
    """What is text has the form; what is a call has its own."""
    for choice in ("none", "required"):
        more = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
        message = (
            client.chat.completions.parse(**asked, **more, response_format=City).choices[0].message
        )
        assert isinstance(message.parsed, City) == (choice == "none")
        assert bool(message.tool_calls) == (choice == "required")
