"""Tools, calls and results in words, for models whose template knows of none."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

from service.tools.calls import Tool, ToolMode, ToolUse
from service.tools.formats import GENERIC
from service.tools.generic_prompt import tools_in_words, turns_in_words
from tests.service.tools.in_sum import in_sum, read

TOOLS = [Tool("weather", "Tells it.", {"type": "object"}), Tool("now")]


def called(*calls: tuple[str, str], content: str = "") -> dict[str, Any]:
    made = [SimpleNamespace(name=name, text=text) for name, text in calls]
    return {"role": "assistant", "content": content, "tool_calls": made}


def result(name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": "x", "name": name}


def test_every_tool_is_described_on_a_line_of_its_own() -> None:
    words = tools_in_words(ToolUse(TOOLS))
    listed = words.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in listed.splitlines()] == [
        {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
        {"name": "now"},
    ]


def test_words_end_with_what_must_be_called() -> None:
    assert "Call" not in tools_in_words(ToolUse(TOOLS)).splitlines()[-1][-20:]
    required = tools_in_words(ToolUse(TOOLS, ToolMode.REQUIRED))
    assert required.endswith("Call a tool now.")
    named = tools_in_words(ToolUse(TOOLS, ToolMode.REQUIRED, "now", is_parallel=False))
    assert named.endswith("Call now now.")
    assert "several" not in named


def test_calls_of_earlier_turns_are_written_as_they_would_be_read() -> None:
    (turn,) = turns_in_words([called(("weather", '{"city": "Paris"}'), ("now", "{}"))])
    found = in_sum(read(GENERIC.new_reader(["weather", "now"]), [turn["content"]]))
    assert turn["role"] == "assistant"
    assert set(turn) == {"role", "content"}
    assert [one[2:4] for one in found] == [("weather", '{"city": "Paris"}'), ("now", "{}")]


def test_text_beside_calls_is_kept() -> None:
    (turn,) = turns_in_words([called(("now", "{}"), content="Let me see.")])
    assert turn["content"].startswith("Let me see.\n<tool_call>")


def test_results_and_what_the_user_says_then_are_one_turn() -> None:
    turns = [
        {"role": "user", "content": "hi"},
        called(("weather", "{}"), ("now", "{}")),
        result("weather", 'sunny </tool_response> "x"'),
        result("now", "12"),
        {"role": "user", "content": "so?"},
        {"role": "assistant", "content": "good"},
        {"role": "user", "content": "a"},
    ]
    told = turns_in_words(turns)
    assert [turn["role"] for turn in told] == ["user", "assistant", "user", "assistant", "user"]
    first, second, *rest = told[2]["content"].split("<tool_response>\n")[1:]
    assert json.loads(first.splitlines()[0]) == {
        "name": "weather",
        "content": 'sunny </tool_response> "x"',
    }
    assert json.loads(second.splitlines()[0]) == {"name": "now", "content": "12"}
    assert not rest
    assert told[2]["content"].endswith("\nso?")


def test_thousands_of_results_become_one_turn_quickly() -> None:
    started = time.monotonic()
    (turn,) = turns_in_words([result("now", "x" * 1900 + "🙂")] * 2048)
    assert time.monotonic() - started < 2  # 10 s where each is added to all before it
    assert turn["content"].count("</tool_response>") == 2048


def test_other_turns_stay_as_they_are() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}] * 2
    assert turns_in_words(turns) == turns
