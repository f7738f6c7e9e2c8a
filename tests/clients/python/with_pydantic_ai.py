"""`pydantic-ai`: agents whose answers are pydantic's models, and tools, by each API."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

QUESTION = "What is the capital of France?"
SETTINGS = {"temperature": 0, "max_tokens": 100, "parallel_tool_calls": False}


class City(BaseModel):
    """A city and where it lies."""

    # Else the schema lets any others follow, and the demo writes them without end.
    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome"]
    country: str = Field(max_length=20)


class Anything(BaseModel):
    """What any JSON object is one of."""

    model_config = ConfigDict(extra="allow")


@pytest.fixture(params=["chat", "responses", "messages"])
def model(server, request):
    if request.param == "messages":
        provider = AnthropicProvider(base_url=server.url, api_key=server.key)
        # It knows by their names which of Anthropic's models take a schema.
        profile = {"supports_json_schema_output": True}
        return AnthropicModel(server.model, provider=provider, profile=profile)
    provider = OpenAICompatibleProvider("tetrad", base_url=server.base_url, api_key=server.key)
    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    return kind(server.model, provider=provider)


def make(model, output_type=str, **more) -> Agent:
    return Agent(model, output_type=output_type, retries=0, **{"model_settings": SETTINGS, **more})


def test_text_whole_and_streamed(model):
    agent = make(model)
    result = agent.run_sync(QUESTION)
    assert "Paris" in result.output
    assert result.usage.output_tokens > 1

    async def stream() -> tuple[str, int]:
        async with agent.run_stream(QUESTION) as streamed:
            pieces = [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]
            return "".join(pieces), streamed.usage.output_tokens

    assert asyncio.run(stream()) == (result.output, result.usage.output_tokens)


def test_a_dialogue_goes_on_with_what_was_answered(model):
    agent = make(model)
    first = agent.run_sync(QUESTION)
    second = agent.run_sync("And of Italy?", message_history=first.all_messages())
    assert second.output
    assert second.usage.input_tokens > first.usage.input_tokens


# ── output of a type ────────────────────────────────────────────────────────────────────────────

FORMS = [ToolOutput, NativeOutput]


@pytest.mark.parametrize("form", FORMS)
def test_output_is_a_model(model, form):
    result = make(model, form(City)).run_sync(QUESTION)
    assert isinstance(result.output, City)
    called = [part for part in result.response.parts if isinstance(part, ToolCallPart)]
    assert bool(called) == (form is ToolOutput)


@pytest.mark.parametrize("form", FORMS)
def test_streamed_output_grows_into_the_same(model, form):
    agent = make(model, form(City))

    async def stream() -> tuple[list[City], int]:
        async with agent.run_stream(QUESTION) as streamed:
            outputs = [output async for output in streamed.stream_output(debounce_by=None)]
            return outputs, streamed.usage.output_tokens

    outputs, num_tokens = asyncio.run(stream())
    whole = agent.run_sync(QUESTION)
    assert (outputs[-1], num_tokens) == (whole.output, whole.usage.output_tokens)
    assert len({output.country for output in outputs}) > 1
    assert all(whole.output.country.startswith(output.country) for output in outputs)


@pytest.mark.parametrize("model", ["chat", "responses"], indirect=True)
def test_prompted_output_is_json_of_any_kind(model):
    """By it the model is told of a schema, and bound to be JSON alone."""
    assert isinstance(make(model, PromptedOutput(Anything)).run_sync(QUESTION).output, Anything)


def test_one_of_several_models_is_chosen(model):
    class Weather(BaseModel):
        """The weather of a city."""

        model_config = ConfigDict(extra="forbid")
        sky: Literal["clear", "grey"]

    assert isinstance(make(model, [City, Weather]).run_sync(QUESTION).output, City | Weather)


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


def tools_first(context) -> dict:
    """Settings that call for the tool in the first step, and for the output in the second."""
    return {**SETTINGS, "tool_choice": ["get_weather"] if context.run_step == 1 else "none"}


@pytest.mark.parametrize(
    ("output_type", "stream"),
    [(str, False), (str, True), (ToolOutput(City), False), (NativeOutput(City), True)],
    ids=["text", "streamed text", "by a tool", "streamed by a schema"],
)
def test_tool_is_called_and_its_answer_taken(model, output_type, stream):
    asked_for = []
    agent = make(model, output_type, model_settings=tools_first)

    @agent.tool_plain
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """Tell the weather of a city."""
        asked_for.append(city)
        return "clear"

    async def ask() -> tuple[object, list]:
        if not stream:
            result = await agent.run("What is the weather in Paris?")
            return result.output, result.all_messages()
        async with agent.run_stream("What is the weather in Paris?") as streamed:
            return await streamed.get_output(), streamed.all_messages()

    output, messages = asyncio.run(ask())
    assert isinstance(output, str if output_type is str else City)
    assert asked_for[0] in ("Paris", "Rome")
    parts = [part for message in messages for part in message.parts]
    call = next(part for part in parts if isinstance(part, ToolCallPart))
    told = next(part for part in parts if isinstance(part, ToolReturnPart))
    assert call.args_as_dict() == {"city": asked_for[0]}
    assert (told.tool_call_id, told.content) == (call.tool_call_id, "clear")


def test_errors_are_its_own(model, server):
    with pytest.raises(ModelHTTPError, match="maximum context length") as caught:
        make(model).run_sync(server.too_long)
    assert caught.value.status_code == 400
