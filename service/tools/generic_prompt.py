"""Tools in plain words, for models whose template knows of none.

What tools there are and how to call them goes into a text for the system turn; calls and results
of earlier turns are written as texts of the assistant and of the user.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from service.tools.call_readers import TOOL_CALL, TOOL_CALL_END
from service.tools.calls import ToolMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.tools.calls import Tool, ToolUse

RESULT, RESULT_END = "<tool_response>", "</tool_response>"


def tools_in_words(use: ToolUse) -> str:
    """Return what a model is told of the tools and of how to call them."""
    listed = "\n".join(_written(_described(tool)) for tool in use.tools)
    example = _call("name of the tool", "{…}")
    several = " Write several such blocks to call several tools." if use.is_parallel else ""
    return (
        "You can call tools. Each line between <tools> and </tools> describes one, with a JSON"
        f" schema of its arguments:\n<tools>\n{listed}\n</tools>\nTo call a tool, write its name"
        f" and its arguments as JSON in this form, and nothing else:\n{example}\n{several}"
        f"\nResults of calls come between {RESULT} and {RESULT_END}.{_now(use)}"
    ).replace("\n\n", "\n")


def turns_in_words(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return turns without calls and results, which are told in texts.

    turns: checked ones, as `service.text.messages` returns them. Results, and what the user says
    after them, become one turn: many templates take none but the assistant's between two.
    """
    told: list[dict[str, Any]] = []
    texts: list[list[str]] = []  # of each; joined once, as there may be thousands
    follows_result = False
    for turn in turns:
        is_result = turn["role"] == "tool"
        plain = _plain(turn)
        if (is_result or plain["role"] == "user") and follows_result:
            texts[-1].append(plain["content"])
        else:
            told.append(plain)
            texts.append([plain["content"]])
        follows_result = is_result or (follows_result and plain["role"] == "user")
    return [{**turn, "content": "\n".join(said)} for turn, said in zip(told, texts, strict=True)]


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    if turn["role"] == "tool":
        result = {"name": turn["name"], "content": turn["content"]}
        return {"role": "user", "content": f"{RESULT}\n{_written(result)}\n{RESULT_END}"}
    if "tool_calls" not in turn:
        return dict(turn)
    calls = [_call(call.name, call.text) for call in turn["tool_calls"]]
    texts = [turn["content"], *calls] if turn["content"] else calls
    others = {name: value for name, value in turn.items() if name != "tool_calls"}
    return {**others, "content": "\n".join(texts)}


def _call(name: str, arguments: str) -> str:
    body = f'{{"name": {_written(name)}, "arguments": {arguments}}}'
    return f"{TOOL_CALL}\n{body}\n{TOOL_CALL_END}"


def _described(tool: Tool) -> dict[str, Any]:
    description = {"description": tool.description} if tool.description else {}
    parameters = {"parameters": tool.parameters} if tool.parameters else {}
    return {"name": tool.name, **description, **parameters}


def _now(use: ToolUse) -> str:
    if use.mode is not ToolMode.REQUIRED:
        return ""
    return f"\nCall {use.only or 'a tool'} now."


def _written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
