"""`instructor`: pydantic's models out of each way that it asks for them, whole and in parts.

Runs with the major of `openai` before the newest, the last one that it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal

import anthropic
import instructor
import openai
import pytest
from instructor import Mode
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel, ConfigDict, Field, field_validator


class City(BaseModel):
    """A city and where it lies."""

    # Else the schema lets any others follow, and the demo writes them without end.
    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome"]
    country: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=99_999_999)


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    sky: Literal["clear", "grey"]


class Unsatisfied(BaseModel):
    """What no answer is one of, though the schema does not say so."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome"]

    @field_validator("name")
    @classmethod
    def refuse(cls, name: str) -> str:
        raise ValueError("name another city")


# By `Mode.JSON` the model is told of the schema, and bound to be JSON alone: too little for the
# demo. llama.cpp's spelling beside it binds it.
BOUND = {"response_format": {"type": "json_object", "schema": City.model_json_schema()}}
MODES = [
    pytest.param(Mode.TOOLS, {}, id="tools"),
    pytest.param(Mode.JSON, {"extra_body": BOUND}, id="json"),
    pytest.param(Mode.JSON_SCHEMA, {}, id="json_schema"),
    pytest.param(Mode.RESPONSES_TOOLS, {}, id="responses"),
]


@pytest.fixture
def asked(server, question):
    return {
        "model": server.model,
        "messages": question,
        "temperature": 0,
        "max_tokens": 100,
        "max_retries": 0,
    }


@pytest.fixture
def make(server):
    """Makes a client that asks in one of the modes."""

    def make(mode: Mode) -> instructor.Instructor:
        client = openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0)
        return instructor.from_openai(client, mode=mode)

    return make


@pytest.mark.parametrize(("mode", "more"), MODES)
def test_answer_is_a_model(make, asked, mode, more):
    answer, raw = make(mode).create_with_completion(**asked, **more, response_model=City)
    assert isinstance(answer, City)
    assert raw.usage.total_tokens > 1


@pytest.mark.parametrize(("mode", "more"), MODES)
def test_parts_of_a_model_grow_into_the_whole(make, asked, mode, more):
    *parts, last = make(mode).create_partial(**asked, **more, response_model=City)
    whole = City.model_validate(last.model_dump())
    countries = [part.country for part in parts if part.country is not None]
    assert len(set(countries)) > 1
    assert all(whole.country.startswith(country) for country in countries)


def test_asynchronous_client_says_the_same(server, make, asked):
    async def ask() -> tuple[dict, dict]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key) as plain:
            client = instructor.from_openai(plain, mode=Mode.JSON_SCHEMA)
            whole = await client.create(**asked, response_model=City)
            parts = client.create_partial(**asked, response_model=City)
            return whole.model_dump(), [part async for part in parts][-1].model_dump()

    same = make(Mode.JSON_SCHEMA).create(**asked, response_model=City).model_dump()
    assert asyncio.run(ask()) == (same, same)


def test_several_models_come_one_by_one(make, asked):
    """As many as fit: a list, too, the demo goes on with."""
    first, *others = make(Mode.TOOLS).create_iterable(**asked, response_model=City)
    assert all(isinstance(one, City) for one in [first, *others])


def test_several_tools_to_choose_from(make, asked):
    """It leaves it to the model whether to call one: the demo must."""
    asked |= {"extra_body": {"tool_choice": "required", "parallel_tool_calls": False}}
    made = make(Mode.PARALLEL_TOOLS).create(**asked, response_model=Iterable[City | Weather])
    (one,) = made
    assert isinstance(one, City | Weather)


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS])
def test_what_does_not_validate_is_asked_for_again(make, asked, mode):
    """The second request carries the call, or the text, and what was wrong with it."""
    asked |= {"max_retries": 1, "response_model": Unsatisfied}
    with pytest.raises(InstructorRetryException, match="name another city") as caught:
        make(mode).create(**asked)
    first, second = caught.value.failed_attempts
    assert second.completion.id != first.completion.id


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON, Mode.JSON_SCHEMA])
def test_answer_that_is_cut_says_so(make, asked, mode):
    with pytest.raises(IncompleteOutputException):
        make(mode).create(**{**asked, "max_tokens": 4}, response_model=City)


def test_anthropics_client_makes_models_too(server, asked):
    del asked["temperature"]  # which that client no longer names
    plain = anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0)
    client = instructor.from_anthropic(plain, mode=Mode.TOOLS)
    assert isinstance(client.create(**asked, response_model=City), City)
    *_, last = client.create_partial(**asked, response_model=City)
    assert City.model_validate(last.model_dump())
