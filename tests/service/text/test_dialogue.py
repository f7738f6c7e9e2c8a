"""What users wrote, as one thing: every text of it, and the mark behind its last."""

from __future__ import annotations

import json

import pytest

from service.text.dialogue import Dialogue, cut_at_mark, mark_end
from service.text.errors import InvalidMessagesError

TURNS = [
    {"role": "user", "content": "a", "name": "b"},
    {"role": "assistant", "content": "c", "reasoning_content": "d"},
]
FULL = Dialogue(TURNS, {"style": "e", "thinking": True, "n": 5}, [{"f": "g"}])


def test_every_text_that_users_wrote_is_found_and_changed():
    assert "".join(FULL.texts()) == "abcdefg"
    assert FULL.with_texts(str.upper) == Dialogue(
        [
            {"role": "user", "content": "A", "name": "B"},
            {"role": "assistant", "content": "C", "reasoning_content": "D"},
        ],
        {"style": "E", "thinking": True, "n": 5},
        [{"F": "G"}],
    )


def test_texts_of_tools_and_calls_are_found_at_any_depth():
    """And of what templates look at to find their way nothing is changed."""
    call = {
        "id": "h",
        "type": "function",
        "function": {"name": "i", "arguments": {"j": [{"k": 5}]}},
    }
    tool = {
        "type": "function",
        "function": {
            "name": "m",
            "description": "n",
            "parameters": {"o": {"p": ["q", None, True]}},
        },
    }
    dialogue = Dialogue(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "l", "tool_call_id": "h", "name": "i"},
        ],
        tools=[tool],
    )
    assert "".join(dialogue.texts()) == "hijklhimnopq"
    changed = dialogue.with_texts(str.upper)
    assert "".join(changed.texts()) == "HIJKLHIMNOPQ"
    assert changed.turns[0]["content"] is None
    assert changed.turns[0]["tool_calls"] == [
        {"id": "H", "type": "function", "function": {"name": "I", "arguments": {"J": [{"K": 5}]}}}
    ]
    assert changed.tools[0]["type"] == "function"
    assert changed.tools[0]["function"]["parameters"] == {"O": {"P": ["Q", None, True]}}
    assert changed.variables()["tools"] == changed.tools


def test_what_json_takes_beyond_texts_is_counted():
    text = Dialogue([{"role": "user", "content": "abc"}])
    assert text.num_chars() == 3
    nested = {"a": [1, [2, [3, {"b": [True, None]}]]]}
    function = {"name": "f", "description": "", "parameters": nested}
    tools = Dialogue(text.turns, tools=[{"type": "function", "function": function}])
    written = json.dumps(tools.tools, indent=4)
    assert len(written) < 4 * (tools.num_chars() - text.num_chars())


def test_templates_know_it_by_their_own_names():
    assert FULL.variables() == {
        "messages": TURNS,
        "documents": [{"f": "g"}],
        "tools": None,
        "style": "e",
        "thinking": True,
        "n": 5,
    }
    assert Dialogue(TURNS).variables()["documents"] is None


def test_the_mark_occurs_nowhere_else_and_all_before_it_is_kept():
    first, second, third = (chr(0x100000 + n) for n in range(3))
    dialogue = Dialogue([{"role": "assistant", "content": f"x {first} "}])
    marked, mark = mark_end(dialogue, template=second)
    assert mark == third
    assert cut_at_mark(f"head {marked.turns[-1]['content']} tail", mark) == f"head x {first} "
    assert dialogue.turns[-1]["content"] == f"x {first} "


@pytest.mark.parametrize(
    ("text", "told"), [("gone", "leaves it out"), ("a|b|", "writes it 2 times")]
)
def test_a_message_that_is_not_written_once_cannot_be_continued(text, told):
    with pytest.raises(InvalidMessagesError, match=told):
        cut_at_mark(text, "|")


def test_a_dialogue_with_every_possible_mark_is_refused():
    every = "".join(map(chr, range(0x100000, 0x10FFFE)))
    with pytest.raises(InvalidMessagesError, match="plane 16"):
        mark_end(Dialogue([{"role": "assistant", "content": every}]), "")
