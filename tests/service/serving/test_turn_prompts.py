"""Prompts of dialogues with tools: told by the template where it can, in words where it cannot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from service.errors import ContextLengthError, InvalidFieldError
from service.serving.turn_prompts import (
    AskedTurn,
    render_turn,
    render_turn_text,
    settled,
    size_of,
    tool_format_of,
)
from service.text.families import ALPACA, LLAMA_2, MISTRAL
from service.text.render_options import RenderOptions
from service.text.templates import ChatTemplate
from service.tools.calls import NO_TOOLS, Tool, ToolCall, ToolMode, ToolUse
from tests.service.fakes import FakeEngine, says, served_model
from tests.service.text import tool_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.serving.served_model import ServedModel

WEATHER = Tool("weather", "tells the weather", {"type": "object", "properties": {"city": {}}})
USE = ToolUse([WEATHER])
USER = {"role": "user", "content": "hi"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [ToolCall("c1", "weather", '{"city": "Ulm"}')],
}
RESULT = {"role": "tool", "content": "wet", "tool_call_id": "c1"}
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no rules') }}{% endif %}"
    "{{ m.role }}:{{ m.content }}\n{% endfor %}"
)


@pytest.fixture
def model_of(tiny_tokenizer) -> Iterator[Callable[[str], ServedModel]]:
    templates: list[ChatTemplate] = []

    def make(source: str) -> ServedModel:
        templates.append(ChatTemplate(tiny_tokenizer, name="test", source=source))
        engine = FakeEngine(says(tiny_tokenizer, "yes"), max_model_len=4096)
        return served_model(engine, tiny_tokenizer, chat_template=templates[-1])

    yield make
    for template in templates:
        template.close()


def text_of(model: ServedModel, *messages: dict[str, Any], tools: ToolUse = NO_TOOLS) -> str:
    return asyncio.run(render_turn_text(AskedTurn(messages=messages, tools=tools), model))


def test_ids_and_text_say_the_same(model_of, tiny_tokenizer):
    for source in (tool_templates.TAGS, LLAMA_2.template, ALPACA.template, NO_SYSTEM):
        model = model_of(source)
        asked = AskedTurn(messages=[USER, CALLED, RESULT], tools=USE)
        rendered = asyncio.run(render_turn(asked, model))
        text = asyncio.run(render_turn_text(asked, model))
        shown = tiny_tokenizer.backend_tokenizer.decode(
            rendered.token_ids, skip_special_tokens=False
        )
        assert shown.removeprefix("<s>") == text.removeprefix("<s>")
        for told in ("weather", "Ulm", "wet", "tells the weather"):
            assert told in text


def test_a_template_that_knows_tools_is_given_them(model_of):
    text = text_of(model_of(tool_templates.TAGS), USER, tools=USE)
    assert '"function": {"name": "weather"' in text


def test_without_tools_to_call_none_are_told(model_of):
    for source in (tool_templates.TAGS, LLAMA_2.template):
        model = model_of(source)
        silent = ToolUse([WEATHER], mode=ToolMode.NONE)
        assert text_of(model, USER, tools=silent) == text_of(model, USER)
        asked = AskedTurn(messages=[USER], tools=silent)
        assert tool_format_of(asked, model.require_chat_template()) is None


def test_others_are_told_in_words_in_the_system_turn(model_of):
    rules = {"role": "system", "content": "be brief"}
    text = text_of(model_of(LLAMA_2.template), rules, USER, tools=USE)
    assert text.startswith("<s>[INST] <<SYS>>\nbe brief\n\nYou can call tools.")
    assert text.endswith("<</SYS>>\n\nhi [/INST]")


def test_or_before_the_users_words_where_there_is_none(model_of):
    text = text_of(model_of(NO_SYSTEM), USER, tools=USE)
    assert text.startswith("user:You can call tools.")
    assert text.endswith("\n\nhi\n")


@pytest.mark.parametrize("source", [LLAMA_2.template, MISTRAL.template, NO_SYSTEM])
def test_calls_of_the_past_are_told_in_words_also_where_no_tool_is_offered(model_of, source):
    """Clients leave the tools out once they want a last word; turns still take turns."""
    text = text_of(model_of(source), USER, CALLED, RESULT)
    assert "weather" in text
    assert "wet" in text
    assert "You can call tools" not in text


@pytest.mark.parametrize(
    ("source", "unasked"),
    [
        (tool_templates.TAGS, None),
        ("{# <|python_tag|> #}" + tool_templates.ONE_CALL, False),
        (LLAMA_2.template, None),  # told in words
    ],
)
def test_a_model_that_was_trained_on_one_call_a_turn_makes_one(model_of, source, unasked):
    template = model_of(source).require_chat_template()
    for asked_for, expected in ((None, unasked), (True, True), (False, False)):
        asked = AskedTurn(messages=[USER], tools=ToolUse([WEATHER], is_parallel=asked_for))
        tools = settled(asked, tool_format_of(asked, template), template).tools
        assert tools.is_parallel is expected


def test_what_is_wrong_with_a_dialogue_is_told_by_its_field(model_of):
    for source in (tool_templates.TAGS, LLAMA_2.template):
        model = model_of(source)
        asked = AskedTurn(messages=[USER, RESULT], tools=USE, param="input")
        for render in (render_turn, render_turn_text):
            with pytest.raises(InvalidFieldError, match="tool_call_id is 'c1'") as error:
                asyncio.run(render(asked, model))
            assert error.value.param == "input"


def test_too_long_a_dialogue_is_told_by_its_field(model_of):
    model = model_of(tool_templates.TAGS)
    long = {**USER, "content": "a" * 10 * model.engine.max_model_len}
    with pytest.raises(ContextLengthError, match="maximum context length") as error:
        asyncio.run(render_turn(AskedTurn(messages=[long], param="input"), model))
    assert error.value.param == "input"


def test_the_size_counts_all_that_is_read():
    asked = AskedTurn(
        messages=[{**USER, "reasoning_content": None}, CALLED],
        tools=ToolUse([Tool("f", "four")]),
        options=RenderOptions(documents=[{"a": "xyz"}], template_kwargs={"b": "12", "c": True}),
    )
    texts = ["user", "hi", "assistant", '{"city": "Ulm"}', "four", "None", "xyz", "12"]
    assert size_of(asked) == sum(map(len, texts))
