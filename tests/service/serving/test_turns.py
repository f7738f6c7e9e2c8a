"""What the engine is asked for a turn: the prompt, the form of the answer, and how it is read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.request import Terms
from service.errors import ContextLengthError, InvalidFieldError
from service.grammars.wanted import TextForm, TextFormKind
from service.serving.generation_request import AnswerForm
from service.serving.sampling import SamplingOptions
from service.serving.thought_tokens import ThoughtMarks
from service.serving.turns import AskedTurn, TurnLength, plan_turn
from service.text.templates import ChatTemplate
from service.tools.calls import Tool, ToolMode, ToolUse
from tests.service.fakes import ByteTokenizer, FakeEngine, PlainTemplate, says, served_model
from tests.service.text import tool_templates
from tests.service.tools.in_sum import in_sum, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.serving.generation_request import GenerationRequest
    from service.serving.served_model import ServedModel
    from service.serving.turns import PlannedTurn

USER = {"role": "user", "content": "hi"}
TOOLS = [Tool("weather", "tells it", {"properties": {"city": {"type": "string"}}}), Tool("now")]
SCHEMA = TextForm(TextFormKind.JSON_SCHEMA, "response_format", schema={"type": "object"})
AS_MUCH_AS_FITS, PLAIN = TurnLength(), AnswerForm()
GENERIC = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
HERMES_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


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


def planned(model: ServedModel, **fields: Any) -> PlannedTurn:
    return asyncio.run(plan_turn(AskedTurn(messages=[USER], **fields), model))


def asked_of(
    turn: PlannedTurn,
    model: ServedModel,
    length: TurnLength = AS_MUCH_AS_FITS,
    form: AnswerForm = PLAIN,
) -> GenerationRequest:
    options, terms = SamplingOptions(temperature=0.5), Terms(caller="someone")
    return turn.request(model, length, options=options, form=form, terms=terms, num_choices=2)


def read_by(turn: PlannedTurn, text: str) -> list[tuple[Any, ...]]:
    return in_sum(read(turn.new_reader(), list(text)))


def test_turn_without_tools_is_nothing_but_text(model_of):
    for use in (ToolUse(), ToolUse(TOOLS, ToolMode.NONE)):
        turn = planned(model_of(tool_templates.TAGS), tools=use, text_form=SCHEMA)
        assert turn.is_plain
        assert turn.text_form is SCHEMA
        assert not turn.kept_token_ids
        assert read_by(turn, HERMES_CALL) == [("text", HERMES_CALL)]


@pytest.mark.parametrize(
    ("source", "call"),
    [
        (tool_templates.TAGS, HERMES_CALL),
        (tool_templates.BRACKETS, '[TOOL_CALLS] [{"name": "now", "arguments": {}}]'),
        (tool_templates.MARKUP, HERMES_CALL),  # unknown marks: told in words
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", HERMES_CALL),
    ],
)
def test_calls_are_read_in_the_way_of_the_template(model_of, source, call):
    turn = planned(model_of(source), tools=ToolUse(TOOLS))
    assert not turn.is_plain
    assert read_by(turn, call) == [("call", 0, "now", "{}", True)]
    assert turn.text_form is not None
    assert turn.text_form.kind is TextFormKind.READY
    assert "arguments_1" in turn.text_form.grammar()


def test_each_choice_has_a_reader_of_its_own(model_of):
    turn = planned(model_of(tool_templates.TAGS), tools=ToolUse(TOOLS))
    first, second = turn.new_reader(), turn.new_reader()
    first.push("<tool_call>")
    assert in_sum(second.push("hi")) == [("text", "hi")]


def test_only_tools_that_may_be_called_are_read(model_of):
    use = ToolUse(TOOLS, allowed={"weather"})
    turn = planned(model_of(tool_templates.TAGS), tools=use)
    assert read_by(turn, HERMES_CALL) == [("text", HERMES_CALL)]


def test_schema_that_cannot_be_followed_is_refused_or_named(model_of):
    odd = {"properties": {"a": {"type": "string", "format": "no-such-format"}}}
    tools = [TOOLS[1], Tool("odd", "", odd)]
    model = model_of(tool_templates.TAGS)
    place = "tools.{}.input_schema"
    turn = planned(model, tools=ToolUse(tools), schema_param=place)
    assert turn.unfollowed == ["tools.1.input_schema"]
    with pytest.raises(InvalidFieldError, match="no-such-format") as raised:
        planned(model, tools=ToolUse(tools, ToolMode.REQUIRED), schema_param=place)
    assert raised.value.param == "tools.1.input_schema"


@pytest.mark.parametrize("source", [tool_templates.TAGS, GENERIC])
@pytest.mark.parametrize("only", [None, "now"])
def test_form_of_a_text_is_named_where_calls_leave_none(model_of, source, only):
    model = model_of(source)
    must = ToolUse(TOOLS, ToolMode.REQUIRED, only)
    assert list(planned(model, tools=must, text_form=SCHEMA).unfollowed) == ["response_format"]
    assert list(planned(model, tools=must).unfollowed) == []
    if source is tool_templates.TAGS:
        may = ToolUse(TOOLS, ToolMode.AUTO)
        assert list(planned(model, tools=may, text_form=SCHEMA).unfollowed) == []


def test_form_that_cannot_stand_beside_tools_is_refused_by_its_name(model_of):
    regex = TextForm(TextFormKind.REGEX, "guided_regex", texts=["a"])
    with pytest.raises(InvalidFieldError, match="guided_regex") as raised:
        planned(model_of(tool_templates.TAGS), tools=ToolUse(TOOLS), text_form=regex)
    assert raised.value.param == "guided_regex"


class ThinkingTemplate(PlainTemplate):
    """Has the model think."""

    reasoning_marks = ("<think>", "</think>")


def test_marks_that_a_text_would_leave_out_are_kept():
    tokenizer = ByteTokenizer(("<think>", "</think>", "<tool_call>", "<other>"))
    engine = FakeEngine(says(tokenizer, "yes"), max_model_len=4096)
    model = served_model(engine, tokenizer, chat_template=ThinkingTemplate(tokenizer))
    id_of = tokenizer.backend_tokenizer.token_to_id
    thoughts = {id_of("<think>"), id_of("</think>")}
    assert planned(model).kept_token_ids == thoughts
    marks = ThoughtMarks("<think>", "</think>", is_open=False)
    request = asked_of(planned(model), model, form=AnswerForm(stop_strings=["a"]))
    assert request.form == AnswerForm(
        stop_strings=["a"], kept_token_ids=frozenset(thoughts), thought_marks=marks
    )
    with_tools = planned(model, tools=ToolUse(TOOLS))
    assert with_tools.kept_token_ids == {*thoughts, id_of("<tool_call>")}


def test_thoughts_come_before_a_text_that_has_a_form():
    tokenizer = ByteTokenizer()
    engine = FakeEngine(says(tokenizer, "yes"), max_model_len=4096)
    model = served_model(engine, tokenizer, chat_template=ThinkingTemplate(tokenizer))
    turn = planned(model, text_form=SCHEMA)
    assert turn.text_form is not None
    assert turn.text_form.param == "response_format"
    assert "thought" in turn.text_form.grammar()
    assert turn.thought_marks == ThoughtMarks("<think>", "</think>", is_open=False)
    assert read_by(turn, "<think>hm</think>{}") == [("reasoning", "hm"), ("text", "{}")]
    assert planned(model).text_form is None


def test_turn_is_asked_of_the_engine_with_all_that_the_request_says(model_of):
    model = model_of(tool_templates.TAGS)
    turn = planned(model, text_form=SCHEMA)
    request = asked_of(turn, model, TurnLength(asked=7))
    assert [list(prompt.token_ids) for prompt in request.prompts] == [list(turn.token_ids)]
    assert (request.max_tokens, request.num_choices) == ([7], 2)
    assert (request.options.temperature, request.terms.caller) == (0.5, "someone")
    assert request.text_form is SCHEMA


def test_turn_may_be_as_long_as_the_context_leaves_room_for(model_of):
    model = model_of(tool_templates.TAGS)
    turn = replace(planned(model), token_ids=[5] * 4000)
    assert asked_of(turn, model).max_tokens == [96]
    with pytest.raises(ContextLengthError, match="at most 96") as raised:
        asked_of(turn, model, TurnLength(asked=97, param="n_predict"))
    assert raised.value.param == "n_predict"
    cut = TurnLength(asked=97, is_cut_to_room=True)
    assert asked_of(turn, model, cut).max_tokens == [96]
    assert asked_of(turn, model, replace(cut, asked=95)).max_tokens == [95]


@pytest.mark.parametrize("is_cut_to_room", [False, True])
def test_dialogue_that_fills_the_context_is_refused_by_its_own_name(model_of, is_cut_to_room):
    model = model_of(tool_templates.TAGS)
    turn = replace(planned(model, param="input"), token_ids=[5] * 4096)
    with pytest.raises(ContextLengthError) as raised:
        asked_of(turn, model, TurnLength(asked=1, is_cut_to_room=is_cut_to_room))
    assert raised.value.param == "input"
