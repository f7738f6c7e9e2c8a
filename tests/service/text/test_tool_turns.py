"""Calls and results: which belong together, in which order they stand, how templates get them."""

from __future__ import annotations

import itertools
import time

import pytest

from service.text.errors import InvalidMessagesError, InvalidTemplateOptionsError
from service.text.json_values import MAX_MARKS
from service.text.messages import checked_turns
from service.text.tool_turns import (
    CallStyle,
    CheckedCall,
    one_call_each,
    written_tools,
    written_turns,
)
from service.tools.calls import Tool, ToolCall

USER = {"role": "user", "content": "x"}


def calls(*named: str) -> dict[str, object]:
    """A turn that calls; each: "id name"."""
    made = [ToolCall(*one.split(" "), "{}") for one in named]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(call_id: str | None = None, content: str = "", **fields: str) -> dict[str, object]:
    return {"role": "tool", "content": content, "tool_call_id": call_id, **fields}


def results_of(*messages: dict[str, object]) -> list[tuple[str, str, str]]:
    """Id, tool's name and content of each result, in their order."""
    turns = checked_turns([USER, *messages])
    return [
        (turn["tool_call_id"], turn["name"], turn["content"])
        for turn in turns
        if turn["role"] == "tool"
    ]


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_results_stand_in_the_order_of_their_calls(order):
    sent = [result(one, one.upper()) for one in order]
    assert results_of(calls("a f", "b g", "c f"), *sent) == [
        ("a", "f", "A"),
        ("b", "g", "B"),
        ("c", "f", "C"),
    ]


def test_results_keep_their_place_among_other_turns():
    """A later turn's are not mixed with them, and a late one stays late."""
    found = results_of(
        *(calls("a f", "b g"), result("b", "1"), USER, calls("c h"), result("c", "2")),
        *(result("a", "3"),),
    )
    assert found == [("b", "g", "1"), ("a", "f", "3"), ("c", "h", "2")]


def test_ids_may_come_again_in_later_turns():
    """Some clients number the calls of each turn."""
    found = results_of(
        *(calls("0 f", "1 g"), result("0"), result("1")),
        *(calls("0 h", "1 i"), result("1"), result("0")),
    )
    assert [name for _, name, _ in found] == ["f", "g", "h", "i"]


def test_of_calls_with_one_id_the_first_is_answered_first():
    """As where the tools' names serve for ids."""
    found = results_of(calls("f f", "f f"), result("f", "1"), result("f", "2"), result("f", "3"))
    assert [content for _, _, content in found] == ["1", "2", "3"]


def test_a_result_may_be_sent_twice():
    assert results_of(calls("a f"), result("a", "1"), result("a", "2")) == [
        ("a", "f", "1"),
        ("a", "f", "2"),
    ]


def test_without_ids_the_name_tells_and_else_the_order():
    made = calls(" f", " g", " f")
    by_order = results_of(made, result(content="1"), result("", "2"), result(content="3"))
    assert [(name, content) for _, name, content in by_order] == [
        ("f", "1"),
        ("g", "2"),
        ("f", "3"),
    ]
    sent = [result(name="g", content="1"), result(name="f", content="2"), result(content="3")]
    by_name = results_of(made, *sent)
    assert [(name, content) for _, name, content in by_name] == [("f", "2"), ("g", "1"), ("f", "3")]
    ids = [call_id for call_id, _, _ in by_name]
    assert len(set(ids)) == 3
    assert all(ids)


def test_made_ids_are_nobody_elses():
    turns = checked_turns([USER, calls("call00001 f", " g", " h")])
    ids = [call.id for call in turns[1]["tool_calls"]]
    assert len(set(ids)) == 3


def test_ids_are_made_quickly_though_many_are_taken():
    num = 4000
    taken = calls(*(f"call{number:05} f" for number in range(num, 2 * num)))
    started = time.monotonic()
    turns = checked_turns([USER, taken, calls(*[" g"] * num)])
    assert time.monotonic() - started < 1  # 5.6 s where each looks at all that are taken
    made = {call.id for turn in turns[1:] for call in turn["tool_calls"]}
    assert len(made) == 2 * num


def test_calls_without_results_are_let_through():
    assert results_of(calls("a f", "b g"), result("b"), USER) == [("b", "g", "")]
    assert results_of(calls("a f"), USER) == []


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([result("a")], r"messages\[1\].tool_call_id is 'a', which no .* there are no calls"),
        ([calls("a f"), result("b")], r"messages\[2\].tool_call_id is 'b'.*last calls are 'a'"),
        ([result("a"), calls("a f")], r"messages\[1\].tool_call_id is 'a'"),
        ([calls("a f"), result("b" * 999)], r"is 'b{50}', which"),
        ([result()], r"messages\[1\] is the result of a call, but no call before it is without"),
        ([calls("a f"), result("a"), result()], r"messages\[3\] is the result of a call"),
        ([calls("a f"), result(name="g")], r"messages\[2\] is the result of 'g' of a call"),
    ],
)
def test_a_result_of_no_call_is_told(messages, told):
    with pytest.raises(InvalidMessagesError, match=told):
        checked_turns([USER, *messages])


@pytest.mark.parametrize("text", ["", " ", "null", "{}", " {} "])
def test_no_arguments_have_many_spellings(text):
    (call,) = checked_turns([{**calls(), "tool_calls": [ToolCall("a", "f", text)]}])[0][
        "tool_calls"
    ]
    assert (call.text, call.arguments) == ("{}", {})


def test_values_of_all_calls_count_together():
    third = '{"a": [' + "[]," * (MAX_MARKS // 6 - 3) + "[]]}"
    turns = [{**calls("a f"), "tool_calls": [ToolCall("a", "f", third)]} for _ in range(3)]
    assert len(checked_turns([USER, *turns])) == 4
    with pytest.raises(InvalidMessagesError, match=r"messages\[4\].tool_calls\[0\].* all calls"):
        checked_turns([USER, *turns, turns[0]])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("a", "", "{}"), "names no function"),
        (ToolCall("a", "f", '{"a": '), "the text of its arguments is no JSON.*give the text of a"),
        (ToolCall("a", "f", "[1]"), "is JSON of type list, not an object"),
        (ToolCall("a", "f", '"{}"'), "is JSON of type string, not an object"),
        (ToolCall("\ud800", "f", "{}"), "lone surrogate"),
        (ToolCall("a", "f", "[" * (MAX_MARKS + 1)), f"more than {MAX_MARKS} values"),
    ],
)
def test_what_is_wrong_with_a_call_is_told_with_its_place(call, told):
    messages = [USER, {**calls("a f"), "tool_calls": [ToolCall("a", "f", "{}"), call]}]
    with pytest.raises(InvalidMessagesError, match=rf"messages\[1\].tool_calls\[1\].*{told}"):
        checked_turns(messages)


def shape(turns: list[dict[str, object]]) -> str:
    """The calls' ids, and "=" before the results'."""
    parts = [
        f"={turn['tool_call_id']}"
        if turn["role"] == "tool"
        else "+".join(call.id for call in turn.get("tool_calls", ())) or turn["role"]
        for turn in turns
    ]
    return " ".join(parts)


@pytest.mark.parametrize(
    ("messages", "split"),
    [
        ([calls("a f"), result("a")], "user a =a"),
        ([calls("a f", "b g"), result("b"), result("a"), USER], "user a =a b =b user"),
        ([calls("a f", "b g", "c h"), result("b")], "user a b =b c"),
        ([calls("a f", "b g"), result("a"), result("a"), result("b")], "user a =a =a b =b"),
        (
            [calls("a f", "b g"), result("a"), result("b"), calls("a f", "b g"), result("b")],
            "user a =a b =b a b =b",
        ),
        ([calls("a f", "b g"), USER, result("a")], "user a b user =a"),
    ],
)
def test_turns_with_several_calls_are_split_with_each_call_before_its_result(messages, split):
    assert shape(one_call_each(checked_turns([USER, *messages]))) == split


def test_what_was_said_stays_before_the_first_call():
    turns = one_call_each(checked_turns([{**calls("a f", "b g"), "content": "hm"}]))
    assert [turn["content"] for turn in turns] == ["hm", ""]


CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [CheckedCall("c1", "f", '{"a":1}', {"a": 1})],
}
ANSWERED = {"role": "tool", "content": "x", "tool_call_id": "c1", "name": "f"}


def written(style: CallStyle, called=CALLED) -> tuple[object, str, object, str]:
    """Content, id and arguments of the call, and the id of the result."""
    first, second = written_turns([called, ANSWERED], style)
    (call,) = first["tool_calls"]
    assert set(call) == {"id", "type", "function"}
    return first["content"], call["id"], call["function"]["arguments"], second["tool_call_id"]


def test_calls_are_written_in_the_style_of_the_template():
    assert written(CallStyle()) == ("", "c1", {"a": 1}, "c1")
    assert written(CallStyle(has_text_arguments=True)) == ("", "c1", '{"a":1}', "c1")
    assert written(CallStyle(has_null_content=True)) == (None, "c1", {"a": 1}, "c1")
    said = {**CALLED, "content": "hm"}
    assert written(CallStyle(has_null_content=True), said)[0] == "hm"


def test_ids_of_nine_letters_are_the_same_for_a_call_and_its_result():
    _, call_id, _, result_id = written(CallStyle(has_nine_letter_ids=True))
    assert call_id == result_id
    assert len(call_id) == 9
    assert call_id.isalnum()
    nine = {**CALLED, "tool_calls": [CheckedCall("aB3456789", "f", "{}", {})]}
    assert written(CallStyle(has_nine_letter_ids=True), nine)[1] == "aB3456789"


def test_tools_are_written_in_full():
    """Templates add texts to a description, and look into the parameters."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert written_tools([Tool("f"), Tool("g", "does g", schema), Tool("h", parameters={})]) == [
        {
            "type": "function",
            "function": {"name": name, "description": words, "parameters": parameters},
        }
        for name, words, parameters in (
            ("f", "", {"type": "object", "properties": {}}),
            ("g", "does g", schema),
            ("h", "", {"type": "object", "properties": {}}),
        )
    ]


def test_what_is_wrong_with_a_tool_is_told():
    with pytest.raises(InvalidTemplateOptionsError, match=r"tools\[1\] holds a number") as error:
        written_tools([Tool("f"), Tool("g", parameters={"maximum": 10**400})])
    assert error.value.param == "tools"
