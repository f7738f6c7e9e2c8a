"""Tools in the flat shape, and what is asked of their use."""

from __future__ import annotations

import json

import pytest

from service.api.openai.responses.request import ResponsesRequest
from service.api.openai.responses.tools import tool_use
from service.api.request_bodies import parse_request
from service.api.requests import ignored_paths
from service.errors import RequestError
from service.tools.calls import NO_TOOLS, Tool, ToolMode, ToolUse
from tests.service.fakes import LIMITS

LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    "strict": True,
}
PATCH = {"type": "custom", "name": "patch", "description": "Changes files."}


def parsed(**fields: object) -> ResponsesRequest:
    body = json.dumps({"input": "hi", **fields}).encode()
    return parse_request(body, ResponsesRequest, LIMITS)


def use_of(**fields: object) -> ToolUse:
    request = parsed(**fields)
    return tool_use(
        request.tools or (), request.tool_choice, is_parallel=request.parallel_tool_calls
    )


def test_function_is_offered_as_it_is():
    assert use_of(tools=[LOOK]) == ToolUse(
        tools=[Tool("look", "Looks.", LOOK["parameters"], is_strict=True)],
        mode=ToolMode.AUTO,
        is_parallel=None,
    )


@pytest.mark.parametrize("parameters", [None, {}, "absent"])
def test_function_may_have_no_parameters(parameters):
    tool = {"type": "function", "name": "look"}
    given = tool if parameters == "absent" else {**tool, "parameters": parameters}
    assert use_of(tools=[given]).tools == [Tool("look")]


def test_custom_tool_is_a_function_of_one_text_and_its_grammar_is_told():
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
    (tool,) = use_of(tools=[{**PATCH, "format": grammar}]).tools
    assert tool.parameters["required"] == ["input"]
    assert tool.description.startswith("Changes files.")
    assert 'start: "a"' in tool.description
    assert (tool.pattern, tool.is_strict) == (None, False)
    assert parsed(tools=[PATCH]).custom_tools == {"patch"}


def test_grammar_that_is_not_followed_is_named():
    for syntax in ("lark", None, "ebnf"):
        grammar = {"type": "grammar", "syntax": syntax, "definition": 'start: "a"'}
        request = parsed(tools=[{**PATCH, "format": grammar}])
        assert ignored_paths(request) == ["tools[].format.definition"]


def test_regular_expression_is_told_and_followed():
    grammar = {"type": "grammar", "syntax": "regex", "definition": "a+b"}
    request = parsed(tools=[LOOK, {"type": "web_search"}, {**PATCH, "format": grammar}])
    _, tool = use_of(tools=[LOOK, {**PATCH, "format": grammar}]).tools
    assert (tool.pattern, tool.is_strict) == ("a+b", True)
    assert "(regex):\na+b" in tool.description
    assert ignored_paths(request) == ["tools[].web_search"]


def test_what_belongs_to_another_kind_of_tool_is_named():
    text = {"type": "text", "syntax": "regex", "definition": "a"}
    (tool,) = use_of(tools=[{**PATCH, "format": text}]).tools
    assert (tool.description, tool.pattern) == ("Changes files.", None)
    named = ignored_paths(parsed(tools=[{**PATCH, "format": text}]))
    assert named == ["tools[].format.syntax", "tools[].format.definition"]
    custom = {**PATCH, "parameters": {"type": "object"}, "strict": True}
    assert ignored_paths(parsed(tools=[custom])) == ["tools[].parameters", "tools[].strict"]
    assert ignored_paths(parsed(tools=[{**LOOK, "format": {"type": "text"}}])) == ["tools[].format"]
    neutral = {**PATCH, "parameters": {}, "strict": False, "format": {"type": "text"}}
    assert ignored_paths(parsed(tools=[neutral])) == []


def test_tools_of_other_types_are_left_out_and_named():
    others = [
        {"type": "web_search", "filters": {"allowed_domains": ["a"]}, "name": 5},
        {"type": "namespace", "name": "mcp", "tools": [LOOK]},
        {"type": "local_shell"},
    ]
    request = parsed(tools=[LOOK, *others])
    assert ignored_paths(request) == [
        "tools[].web_search",
        "tools[].namespace",
        "tools[].local_shell",
    ]
    assert [tool.name for tool in use_of(tools=[LOOK, *others]).tools] == ["look"]


@pytest.mark.parametrize("tools", [None, [], [{"type": "web_search"}]])
@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_without_tools_there_are_none_to_use(tools, choice):
    assert use_of(tools=tools, tool_choice=choice) == NO_TOOLS


def test_tools_that_must_not_be_called_are_not_told_of():
    assert use_of(tools=[LOOK], tool_choice="none") == NO_TOOLS


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_choice_says_whether_tools_may_or_must_be_called(mode):
    assert use_of(tools=[LOOK], tool_choice=mode).mode.value == mode


def test_choice_may_name_one_tool():
    use = use_of(tools=[LOOK, PATCH], tool_choice={"type": "function", "name": "look"})
    assert (use.mode, use.only) == (ToolMode.REQUIRED, "look")
    use = use_of(tools=[LOOK, PATCH], tool_choice={"type": "custom", "name": "patch"})
    assert (use.mode, use.only) == (ToolMode.REQUIRED, "patch")


def test_choice_may_allow_some_tools():
    choice = {"type": "allowed_tools", "mode": "required", "tools": [PATCH]}
    use = use_of(tools=[LOOK, PATCH], tool_choice=choice)
    assert use.mode is ToolMode.REQUIRED
    assert [tool.name for _, tool in use.callable] == ["patch"]


def test_choice_that_allows_only_tools_of_other_types_allows_none():
    others = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
    assert use_of(tools=[LOOK], tool_choice=others) == NO_TOOLS
    with pytest.raises(RequestError, match="allows no tool"):
        use_of(tools=[LOOK], tool_choice={**others, "mode": "required"})


@pytest.mark.parametrize(
    ("tool", "choice"),
    [
        ({"type": "web_search"}, {"type": "web_search"}),
        ({"type": "web_search_preview_2025_03_11"}, {"type": "web_search_preview"}),
        ({"type": "web_search_2025_08_26"}, {"type": "web_search"}),
        ({"type": "web_search_preview_2025_03_11"}, {"type": "web_search"}),
        ({"type": "code_interpreter20250522"}, {"type": "code_interpreter"}),
        ({"type": "mcp", "server_label": "a"}, {"type": "mcp", "server_label": "a", "name": "b c"}),
    ],
)
def test_choice_of_a_tool_that_is_left_out_is_left_out_and_named(tool, choice):
    request = parsed(tools=[LOOK, tool], tool_choice=choice)
    assert ignored_paths(request) == [f"tools[].{tool['type']}", f"tool_choice.{choice['type']}"]
    use = use_of(tools=[LOOK, tool], tool_choice=choice)
    assert (use.mode, [one.name for one in use.tools]) == (ToolMode.AUTO, ["look"])
    assert use_of(tools=[tool], tool_choice=choice) == NO_TOOLS


@pytest.mark.parametrize("chosen", ["", "f", "file", "file_", "file_searc", "web_search_"])
def test_choice_of_a_part_of_a_type_is_refused(chosen):
    others = [{"type": "file_search"}, {"type": "web_search_preview"}]
    with pytest.raises(RequestError, match="none of tools has"):
        use_of(tools=[LOOK, *others], tool_choice={"type": chosen})


def test_calls_beside_each_other_may_be_forbidden():
    assert use_of(tools=[LOOK], parallel_tool_calls=False).is_parallel is False
    assert use_of(tools=[LOOK], parallel_tool_calls=True).is_parallel is True


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "there are no tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "x"}}, "not among tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "function"}}, "has no name"),
        ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "has no tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "web_search"}}, "none of tools has"),
        ({"tools": [LOOK], "tool_choice": {"type": 5}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "x" * 1000}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [LOOK, LOOK]}, "two of one name"),
        ({"tools": [{"type": "function"}]}, "has no name"),
        ({"tools": [{"name": "look"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "name": "a", "parameters": 5}]}, "tools.0.parameters"),
        ({"tools": [LOOK] * 513}, "513 tools"),
        ({"tools": [{**LOOK, "name": f"t{n}"} for n in range(129)]}, "129 that may be called"),
        ({"tools": [{**LOOK, "description": "a" * 600_000}]}, "characters"),
        ({"tools": [{**LOOK, "name": "look at"}]}, "tools.0.name"),
        ({"tools": "look"}, "tools"),
    ],
)
def test_tools_that_cannot_be_used_so_are_refused(fields, words):
    with pytest.raises(RequestError, match=words):
        use_of(**fields)
