"""Tools in requests: every spelling of them, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from service.api.requests import ignored_paths
from service.api.tool_fields import MAX_TOOL_CHARACTERS, MAX_TOOLS, ToolRequest
from service.tools.calls import NO_TOOLS, Tool, ToolMode
from tests.service.fakes import LIMITS, MODEL, ByteTokenizer, FakeEngine, running_server, says

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def function(name: str = "weather", **fields: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def asked(**fields: object) -> ToolRequest:
    return ToolRequest.model_validate(fields, context=LIMITS)


def refusal(**fields: object) -> str:
    with pytest.raises(ValidationError) as raised:
        asked(**fields)
    return str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": None},
        {"tools": [], "tool_choice": "auto", "functions": []},
        {"tools": [function()], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tool_choice": "none", "function_call": ""},
    ],
)
def test_silence_and_none_offer_no_tool(fields):
    assert asked(**fields).tool_use == NO_TOOLS


@pytest.mark.parametrize("silent", [{}, {"parameters": None}, {"parameters": {}}])
def test_parameters_may_be_left_out(silent):
    use = asked(tools=[function(**silent)]).tool_use
    assert use.tools == [Tool("weather")]


def test_tool_is_taken_with_all_that_is_said_of_it():
    given = function(description="Tells it.", parameters=SCHEMA, strict=True)
    (tool,) = asked(tools=[given]).tool_use.tools
    assert tool == Tool("weather", "Tells it.", SCHEMA, is_strict=True)


@pytest.mark.parametrize(
    ("choice", "mode", "only"),
    [
        (None, ToolMode.AUTO, None),
        ("auto", ToolMode.AUTO, None),
        ("required", ToolMode.REQUIRED, None),
        (named("now"), ToolMode.REQUIRED, "now"),
        ({"function": {"name": "now"}}, ToolMode.REQUIRED, "now"),
    ],
)
def test_choice_says_what_is_called(choice, mode, only):
    use = asked(tools=[function(), function("now")], tool_choice=choice).tool_use
    assert (use.mode, use.only) == (mode, only)
    assert use.is_parallel is (None if only is None else False)


def test_allowed_tools_are_the_only_ones_that_may_be_called():
    allowed = {"mode": "required", "tools": [named("now")]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    use = asked(tools=[function(), function("now")], tool_choice=choice).tool_use
    assert use.mode is ToolMode.REQUIRED
    assert [tool.name for tool in use.tools] == ["weather", "now"]
    assert [(place, tool.name) for place, tool in use.callable] == [(1, "now")]


@pytest.mark.parametrize("is_parallel", [True, False, None])
def test_parallel_calls_are_as_asked(is_parallel):
    use = asked(tools=[function()], parallel_tool_calls=is_parallel).tool_use
    assert use.is_parallel is is_parallel


def test_functions_are_tools_of_which_one_is_called():
    request = asked(functions=[{"name": "now", "parameters": SCHEMA}], function_call="auto")
    assert request.is_legacy
    assert request.tool_use.tools == [Tool("now", "", SCHEMA)]
    assert request.tool_use.is_parallel is False
    chosen = asked(functions=[{"name": "now"}], function_call={"name": "now"}).tool_use
    assert (chosen.mode, chosen.only) == (ToolMode.REQUIRED, "now")


@pytest.mark.parametrize("name", ["", "a b", "a.b", "x" * 65, "é", "a\n"])
def test_names_are_of_letters_digits_and_lines(name):
    assert "letters" in refusal(tools=[function(name)])
    assert "letters" in refusal(functions=[{"name": name}])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": named("now")}, "there are no tools"),
        ({"function_call": {"name": "now"}}, "there are no tools"),
        ({"tools": [function()], "tool_choice": named("now")}, "not among tools"),
        ({"tools": [function()], "function_call": {"name": "weather"}}, "there are no tools"),
        ({"functions": [{"name": "f"}], "tool_choice": "required"}, "there are no tools"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "not among functions"),
        ({"tools": [function()], "functions": [{"name": "f"}]}, "mean the same"),
        ({"tools": [function(), function()]}, "two of one name"),
        ({"tools": [function()], "tool_choice": "any"}, "none, auto, required"),
        ({"tools": [function()], "tool_choice": {"type": "function"}}, "without function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, 'type "function" alone'),
        ({"tools": [function(parameters="x")]}, "an object"),
        ({"tools": [function(f"f{n}") for n in range(MAX_TOOLS + 1)]}, f"at most {MAX_TOOLS}"),
        ({"tools": [1] * 1_000_000}, f"at most {MAX_TOOLS}"),
        ({"tools": [function(description="x" * (MAX_TOOL_CHARACTERS + 1))]}, "characters"),
        ({"tools": {"a": 1}}, "list"),
        ({"tools": [function(strict="yes")]}, "boolean"),
        (
            {
                "tools": [function()],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [named("now")]},
                },
            },
            "not among tools",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(fields, said):
    assert said in refusal(**fields)


def test_unknown_keys_are_named_with_their_path():
    given = function(cache_control={"type": "ephemeral"})
    request = asked(tools=[{**given, "defer_loading": True}])
    assert ignored_paths(request) == ["tools[].defer_loading", "tools[].function.cache_control"]


@pytest.mark.parametrize("tools", [{}, {"functions": [{"name": "f"}]}])
def test_allowing_several_calls_has_no_effect_where_there_are_none(tools):
    assert asked(**tools, parallel_tool_calls=True).unused == ["parallel_tool_calls"]
    assert asked(**tools, parallel_tool_calls=False).unused == []
    assert asked(tools=[function()], parallel_tool_calls=True).unused == []


@pytest.fixture(scope="module")
def client():
    tokenizer = ByteTokenizer()
    engine = FakeEngine(says(tokenizer, "hi"), max_model_len=9999)
    with (
        running_server(engine, tokenizer) as server,
        httpx.Client(base_url=server.url) as made,
    ):
        yield made


def post(client: httpx.Client, **fields: object) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    return client.post("/v1/chat/completions", json=body)


ODD = {"type": "object", "properties": {"a": {"type": "string", "format": "no-such-format"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"tools": [function("x"), function(parameters=ODD)], "tool_choice": "required"},
            "tools.1.function.parameters",
        ),
        (
            {"functions": [{"name": "f", "parameters": ODD}], "function_call": {"name": "f"}},
            "functions.0.parameters",
        ),
        ({"tools": [function(parameters=ODD, strict=True)]}, "tools.0.function.parameters"),
    ],
)
def test_schema_that_cannot_be_followed_is_refused_by_its_place(client, fields, param):
    error = post(client, **fields).json()["error"]
    assert error["param"] == param
    assert "no-such-format" in error["message"]


def test_schema_that_need_not_be_followed_is_named_as_ignored(client):
    answer = post(client, tools=[function("x"), function(parameters=ODD)])
    assert answer.status_code == 200
    assert answer.headers["x-ignored-params"] == "tools.1.function.parameters"


def test_form_that_cannot_stand_beside_tools_is_refused_by_its_name(client):
    refused = post(client, tools=[function()], regex="a+")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "regex")
    assert post(client, tools=[function()], regex="a+", tool_choice="none").is_success
