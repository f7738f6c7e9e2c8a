"""`anthropic`: the official client of the Messages API."""

from __future__ import annotations

import asyncio
from typing import Literal

import anthropic
import pydantic
import pytest

WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0)


@pytest.fixture
def asked(server, question):
    return {
        "model": server.model,
        "max_tokens": 20,
        "messages": question,
        "extra_body": {"temperature": 0},  # which this client no longer names
    }


def create(client, asked, **more):
    return client.messages.create(**asked, **more)


def test_whole_answer(client, asked):
    answer = create(client, asked)
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    (block,) = answer.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert answer.usage.output_tokens > 1
    assert answer._request_id


def test_stream_by_the_helper_says_the_same(client, asked):
    whole = create(client, asked)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.model) == (whole.stop_reason, whole.model)
    told, wanted = final.usage, whole.usage
    assert told.output_tokens == wanted.output_tokens
    assert prompt_tokens(told) == prompt_tokens(wanted)


def prompt_tokens(usage) -> int:
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def test_plain_stream_of_events(client, asked):
    events = list(create(client, asked, stream=True))
    assert events[0].type == "message_start"
    assert prompt_tokens(events[0].message.usage) > 5
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-1].type == "message_stop"


def test_asynchronous_stream(server, asked):
    async def ask() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=server.url, api_key=server.key) as client,
            client.messages.stream(**asked) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert "Paris" in asyncio.run(ask())


def test_tokens_are_counted_as_they_are_told(client, server, asked):
    kept = {name: asked[name] for name in ("model", "messages")}
    for more in ({}, {"system": "Be brief."}, {"tools": [WEATHER]}):
        counted = client.messages.count_tokens(**kept, **more).input_tokens
        assert counted == prompt_tokens(create(client, asked, **more).usage)


def test_a_prompt_that_begins_as_an_earlier_one_is_cached(client, asked):
    long = "one two three four five six seven eight nine ten " * 20
    blocks = [{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}]
    create(client, asked, system=blocks)
    usage = create(client, asked, system=blocks).usage
    assert usage.cache_read_input_tokens > 100
    assert usage.cache_read_input_tokens > usage.input_tokens


def test_what_ends_an_answer(client, asked):
    ended = create(client, asked, stop_sequences=["Paris"])
    assert (ended.stop_reason, ended.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in ended.content[0].text
    assert create(client, {**asked, "max_tokens": 2}).stop_reason == "max_tokens"
    # Agents ask for constants that fit much larger contexts.
    with client.messages.stream(**asked | {"max_tokens": 32_000}) as stream:
        assert stream.get_final_message().stop_reason == "end_turn"


def test_an_answer_goes_on_from_its_beginning(client, asked, question):
    begun = [*question, {"role": "assistant", "content": "The capital of France is"}]
    text = create(client, {**asked, "messages": begun}).content[0].text
    assert text.lstrip().startswith("Paris")


def test_an_answer_is_taken_back(client, asked, question):
    answer = create(client, asked)
    for content in (answer.content, [block.model_dump() for block in answer.content]):
        dialogue = [
            *question,
            {"role": "assistant", "content": content},
            {"role": "user", "content": [{"type": "text", "text": "And of Italy?"}]},
        ]
        assert create(client, {**asked, "messages": dialogue}).content[0].text


class City(pydantic.BaseModel):
    name: Literal["Paris", "Rome"]
    is_capital: bool


def test_an_answer_has_the_form_that_was_asked_for(client, asked):
    asked["max_tokens"] = 60
    answer = client.messages.parse(**asked, output_format=City)
    assert isinstance(answer.parsed_output, City)
    with client.messages.stream(**asked, output_format=City) as stream:
        assert stream.get_final_message().parsed_output == answer.parsed_output


def test_the_clients_own_error_classes(client, server, asked):
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(client, {**asked, "model": "unknown"})
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        create(client, {**asked, "extra_body": {"temperature": 9}})
    for stream in (False, True):
        too_long = [{"role": "user", "content": server.too_long}]
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            create(client, {**asked, "messages": too_long}, stream=stream)
    wrong = anthropic.Anthropic(base_url=server.url, api_key="sk-wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        create(wrong, asked)


def test_models_are_listed(client, server):
    (model,) = client.models.list()
    assert (model.id, model.type) == (server.model, "model")
    assert model.created_at.year > 2000
    assert client.models.retrieve(server.model).display_name == server.model


def test_fields_of_the_beta_api(client, asked):
    answer = client.beta.messages.create(
        **asked,
        betas=["context-management-2025-06-27"],
        thinking={"type": "adaptive"},
        metadata={"user_id": "someone"},
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
    )
    assert "Paris" in answer.content[0].text


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def calling(asked):
    """Must call, and once: the demo is too weak to decide by itself, and to come to an end."""
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    return {**asked, "max_tokens": 80, "tools": [WEATHER], "tool_choice": choice}


def test_a_call_and_its_result(client, calling, question):
    answer = create(client, calling)
    assert answer.stop_reason == "tool_use"
    (call,) = answer.content
    assert (call.type, call.name) == ("tool_use", "get_weather")
    assert call.input["city"] in ("Paris", "Rome")
    dialogue = [
        *question,
        {"role": "assistant", "content": answer.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18 °C"}],
        },
    ]
    told = create(
        client, {**calling, "messages": dialogue, "tool_choice": {"type": "none"}, "max_tokens": 20}
    )
    assert told.content[0].type == "text"


def test_a_streamed_call_says_the_same(client, calling):
    whole = create(client, calling)
    with client.messages.stream(**calling) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert snapshots[-1] == final.content[0].input == whole.content[0].input
    assert final.stop_reason == "tool_use"


def test_the_clients_own_loop_runs_tools(client, asked):
    asked_for = []

    @anthropic.beta_tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """Tell the weather of a city."""
        asked_for.append(city)
        return "18 °C"

    runner = client.beta.messages.tool_runner(
        **asked | {"max_tokens": 60}, tools=[get_weather], max_iterations=2
    )
    final = runner.until_done()
    assert final.stop_reason in ("end_turn", "max_tokens", "tool_use")
