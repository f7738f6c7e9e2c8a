"""A session's commands, and what belongs to its dialogue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from service.client.server import Server
from service.commands.conversation.answer_view import PipeView
from service.commands.conversation.dialogue import Dialogue
from service.commands.conversation.session import ChatSession
from tests.service.client.scripted_server import (
    DONE,
    END,
    ScriptedServer,
    counts,
    error,
    says,
    scripted_server,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.models("demo", "other")
        yield running


@pytest.fixture
def session(script: ScriptedServer) -> Iterator[ChatSession]:
    with Server(f"{script.url}/v1", None) as server:
        yield ChatSession(
            server,
            Dialogue("Be brief."),
            model="demo",
            fields={"temperature": 0.0},
            make_view=lambda: PipeView(ends_line=True),
            tells_usage=False,
        )


def contents(body: dict) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_each_question_goes_with_what_was_said_before(session, script, capsys):
    script.chat(says("one "), says("and two"), END)
    script.chat(says("three"), END)
    session.take("first?")
    session.take("second?")
    first, second = script.bodies
    assert (first["model"], first["temperature"]) == ("demo", 0.0)
    assert contents(first) == ["Be brief.", "first?"]
    assert contents(second) == ["Be brief.", "first?", "one and two", "second?"]
    assert capsys.readouterr().out == "one and two\nthree\n"


def test_nothing_is_asked_where_nothing_was_typed(session, script):
    session.take("")
    session.take("  \n ")
    assert not script.asked


def test_the_system_prompt_is_shown_and_replaced(session, script, capsys):
    script.chat(says("a"), END)
    session.take("/system")
    session.take("/system  Be long.")
    assert capsys.readouterr() == (
        "Be brief.\n", "tetrad: the system prompt is set, from the next question on\n"
    )  # fmt: skip
    session.take("hi")
    assert contents(script.bodies[0]) == ["Be long.", "hi"]


def test_reset_keeps_the_system_prompt_alone(session, script):
    script.chat(says("a"), END)
    for line in ("hi", "/reset", "again"):
        session.take(line)
    assert contents(script.bodies[1]) == ["Be brief.", "again"]


def test_the_dialogue_is_saved(session, script, capsys, tmp_path):
    script.chat(says("a"), END)
    session.take("hi")
    session.take(f"/save {tmp_path / 'it.json'}")
    saved = json.loads((tmp_path / "it.json").read_text())["messages"]
    assert [message["content"] for message in saved] == ["Be brief.", "hi", "a"]
    session.take(f"/save {tmp_path / 'it.json'}")
    assert "File exists" in capsys.readouterr().err
    session.take("/save")
    assert "name a file" in capsys.readouterr().err


def test_another_model_answers_from_then_on(session, script, capsys):
    script.chat(says("a"), END)
    session.take("/model")
    assert capsys.readouterr().out == "* demo\n  other\n"
    session.take("/model none")
    assert "there is no none" in capsys.readouterr().err
    session.take("/model other")
    session.take("hi")
    assert script.bodies[0]["model"] == "other"


def test_what_is_no_command_is_told_and_not_asked(session, script, capsys):
    session.take("/halt now")
    assert "there is no /halt; /help lists the commands" in capsys.readouterr().err
    session.take("/help")
    assert "/system [TEXT]" in capsys.readouterr().out
    assert not script.asked


def test_a_message_may_begin_with_a_slash(session, script):
    script.chat(says("a"), END)
    session.take("//etc/hosts holds what?")
    assert contents(script.bodies[0])[-1] == "/etc/hosts holds what?"


def test_a_refused_question_is_no_part_of_the_dialogue(session, script, capsys):
    too_long = error("This model's maximum context length is 9 tokens", "context_length_exceeded")
    script.reply("/v1/chat/completions", too_long, status=400)
    script.chat(says("a"), END)
    session.take("long")
    assert "context length is 9 tokens, or begin anew with /reset" in capsys.readouterr().err
    session.take("short")
    assert contents(script.bodies[1]) == ["Be brief.", "short"]


def test_what_came_of_a_broken_answer_stays(session, script, capsys):
    script.chat(says("half"))
    script.chat(says("a"), END)
    session.take("hi")
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "half\n", "tetrad: the connection ended before the answer did\n"
    )  # fmt: skip
    session.take("and?")
    assert contents(script.bodies[1]) == ["Be brief.", "hi", "half", "and?"]


def test_usage_is_told_after_each_answer(session, script, capsys):
    session._tells_usage = True
    script.chat(says("a"), says("b", "length"), counts(5, 2), DONE)
    session.take("hi")
    cut, usage = capsys.readouterr().err.splitlines()
    assert "--max-tokens allows more" in cut
    assert usage.startswith("tetrad: 5 tokens read, 2 written; the first after 0.")
