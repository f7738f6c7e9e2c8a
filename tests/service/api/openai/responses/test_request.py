"""What a request's fields mean, and which are refused or named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from service.api.openai.responses.request import ResponsesRequest
from service.api.request_bodies import parse_request
from service.api.requests import ignored_paths
from service.errors import InvalidFieldError, RequestError, UnsupportedFieldError
from service.grammars.wanted import TextFormKind
from tests.service.api.odd_values import with_odd_values
from tests.service.api.openai.responses import codex
from tests.service.fakes import LIMITS, ByteTokenizer, FakeEngine, PlainTemplate, served_model

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def parsed(**fields: object) -> ResponsesRequest:
    body = json.dumps({"input": "hi", **fields}).encode()
    return parse_request(body, ResponsesRequest, LIMITS)


class ThoughtfulTemplate(PlainTemplate):
    """One that lets its thoughts be set, and shows those of before."""

    kwargs_names = frozenset({"reasoning_effort", "enable_thinking"})

    def reads(self, name: str) -> bool:
        return name == "reasoning_content"


class ShortTemplate(PlainTemplate):
    """One that takes no turn of the system."""

    traits = SimpleNamespace(takes_system=False)


def model_with(template: type[PlainTemplate]):
    tokenizer = ByteTokenizer()
    engine = FakeEngine(lambda prompt, params: [])
    return served_model(engine, tokenizer, chat_template=template(tokenizer))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"previous_response_id": "resp_1"}, "send the dialogue so far as items of input"),
        ({"conversation": "conv_1"}, "send the dialogue so far as items of input"),
        ({"conversation": {"id": "conv_1"}}, "send the dialogue so far as items of input"),
        ({"background": True}, "wait for the answer, or stream it"),
        ({"prompt": {"id": "pmpt_1"}}, "send the prompt's text as instructions and input"),
        ({"n": 2}, "does not support it"),
    ],
)
def test_what_would_have_to_be_kept_is_refused_with_the_reason(fields, reason):
    with pytest.raises(UnsupportedFieldError, match=reason) as caught:
        parsed(**fields)
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": None, "conversation": None, "background": False, "prompt": None},
        {"store": False, "truncation": "disabled", "n": 1, "service_tier": "auto"},
        {"tools": [], "metadata": {}, "include": [], "reasoning": {}, "text": {}, "user": ""},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "stream_options": None},
        {"reasoning": {"effort": None, "summary": "auto"}, "max_tool_calls": None},
        {"stream_options": {"include_obfuscation": False}, "metadata": {"a": "b"}},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 0},
    ],
)
def test_neutral_values_say_nothing(fields):
    assert ignored_paths(parsed(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"prompt_cache_key": "k"}, "prompt_cache_key"),
        ({"safety_identifier": "s"}, "safety_identifier"),
        ({"include": ["file_search_call.results"]}, "include.file_search_call.results"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"generate_summary": "concise"}}, "reasoning.generate_summary"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ],
)
def test_what_has_no_effect_is_named(fields, named):
    assert ignored_paths(parsed(**fields)) == [named]


def test_most_tokens_go_by_their_own_name_and_by_others():
    request = parsed(max_output_tokens=7)
    assert request.value_of("max_tokens") == 7
    assert request.given_name_of("max_tokens") == "max_output_tokens"
    assert parsed(max_tokens=7, max_output_tokens=7).value_of("max_tokens") == 7
    with pytest.raises(InvalidFieldError, match="mean the same and differ"):
        parsed(max_tokens=7, max_output_tokens=8)


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, SCHEMA),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
    ],
)
def test_format_is_the_form_of_the_text(form, schema):
    wanted = parsed(text={"format": form}).text_form
    assert (wanted.kind, wanted.schema) == (TextFormKind.JSON_SCHEMA, schema)
    assert wanted.param == "text.format"


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_schema_that_the_type_of_a_format_takes_no_heed_of_is_named(kind):
    request = parsed(text={"format": {"type": kind, "schema": SCHEMA}})
    assert ignored_paths(request) == ["text.format.schema"]
    assert ignored_paths(parsed(text={"format": {"type": kind, "schema": {}}})) == []


@pytest.mark.parametrize(
    "text", [None, {}, {"format": None}, {"format": {}}, {"format": {"type": "text"}}]
)
def test_any_text_is_wanted_by_default(text):
    assert parsed(text=text).text_form is None


def test_other_spellings_of_a_form_are_taken_and_two_forms_are_not():
    assert parsed(structured_outputs={"regex": "a+"}).text_form.kind is TextFormKind.REGEX
    with pytest.raises(InvalidFieldError, match="give one of them"):
        parsed(guided_json=SCHEMA, text={"format": {"type": "json_object"}})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "has no schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(65)}}, "65 items"),
        ({"include": ["x"] * 65}, "65 items"),
        ({"include": "x"}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"instructions": ["a"]}, "instructions"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ],
)
def test_wrong_values_are_refused_by_their_place(fields, words):
    with pytest.raises(RequestError, match=words):
        parsed(**fields)


@pytest.mark.parametrize(
    ("fields", "num_top"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
    ],
)
def test_logprobs_are_told_where_they_are_included_or_counted(fields, num_top):
    assert parsed(**fields).num_logprobs == num_top


def test_effort_and_kwargs_go_to_a_template_that_takes_them():
    model = model_with(ThoughtfulTemplate)
    request = parsed(reasoning={"effort": "low"}, chat_template_kwargs={"enable_thinking": False})
    kwargs = request.asked_turn(model).options.template_kwargs
    assert kwargs == {"reasoning_effort": "low", "enable_thinking": False}
    assert request.unread(model) == []


def test_what_a_template_does_not_take_is_named():
    model = model_with(PlainTemplate)
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    request = parsed(
        input=[{"role": "user", "content": "hi"}, thought],
        reasoning={"effort": "low"},
        chat_template_kwargs={"enable_thinking": False},
    )
    assert request.asked_turn(model).options.template_kwargs == {}
    assert request.unread(model) == [
        "chat_template_kwargs.enable_thinking",
        "reasoning.effort",
        "input[].reasoning",
    ]


def test_instructions_stand_before_the_users_words_where_a_template_takes_no_system_turn():
    model = model_with(ShortTemplate)
    request = parsed(instructions="Be brief.", input=[{"role": "user", "content": "hi"}])
    assert request.asked_turn(model).messages == [{"role": "user", "content": "Be brief.\n\nhi"}]


def test_tools_schema_is_named_by_its_place_in_the_request():
    look = {"type": "function", "name": "look"}
    request = parsed(tools=[{"type": "web_search"}, look, {"type": "x"}, {**look, "name": "b"}])
    turn = request.asked_turn(model_with(PlainTemplate))
    assert [turn.field_of(place) for place in range(2)] == [
        "tools.1.parameters",
        "tools.3.parameters",
    ]


def test_turn_is_asked_for_with_the_tools_that_are_known():
    body = json.dumps(codex.request("m", codex.NEXT_INPUT)).encode()
    request = parse_request(body, ResponsesRequest, LIMITS)
    turn = request.asked_turn(model_with(PlainTemplate))
    assert [tool.name for tool in turn.tools.tools] == ["shell_command", "apply_patch"]
    assert [message["role"] for message in turn.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "tool", "user"),
    ]
    assert turn.param == "input"


def test_any_value_at_any_place_is_taken_or_refused_in_words():
    """Places are those of an agent's request; a fault of the server's would be a 500."""
    num_refused = 0
    for _, body in with_odd_values(codex.request("m", codex.NEXT_INPUT)):
        try:
            ignored_paths(parse_request(json.dumps(body).encode(), ResponsesRequest, LIMITS))
        except RequestError:
            num_refused += 1
    assert num_refused > 500
