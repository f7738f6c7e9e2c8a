"""A session as a person has it: a process behind a terminal, keys pressed, answers read."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from service.commands.conversation.input_history import read_history
from tests.service.client.scripted_server import (
    END,
    UNTIL_LEFT,
    ScriptedServer,
    says,
    scripted_server,
    thinks,
)
from tests.service.commands.conversation.typed_terminal import (
    ARROW_UP,
    CTRL_D,
    LIMIT_S,
    typed_terminal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.models("demo")
        yield running


@pytest.fixture
def environment(script, tmp_path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "TETRAD_URL": script.url}


def questions(body: dict) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_ctrl_c_stops_the_answer_and_what_came_of_it_stays(script, environment):
    script.chat(says("The beginning"), UNTIL_LEFT)
    script.chat(says("More."), END)
    with typed_terminal("chat", environment=environment) as terminal:
        assert f"demo at {script.url}/v1; /help tells more" in terminal.wait_for("> ")
        terminal.type("Tell me.\r")
        terminal.wait_for("The beginning")
        terminal.interrupt()
        assert "stopped" in terminal.wait_for("> ")
        assert script.has_left.wait(LIMIT_S)
        terminal.type("Go on.\r")
        terminal.wait_for("More.")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert questions(script.bodies[1]) == ["Tell me.", "The beginning", "Go on."]


def test_ctrl_c_while_typing_drops_the_line_and_no_more(script, environment):
    script.chat(says("Yes."), END)
    with typed_terminal("chat", environment=environment) as terminal:
        terminal.wait_for("> ")
        terminal.type("not this")
        terminal.wait_for("not this")
        terminal.interrupt()
        terminal.wait_for("\n> ")
        terminal.type("but this\r")
        terminal.wait_for("Yes.")
        terminal.wait_for("> ")
        terminal.type("/quit\r")
        assert terminal.wait_for_end() == 0
    assert questions(script.bodies[0]) == ["but this"]


def test_ctrl_d_amid_a_message_of_several_lines_drops_it_and_no_more(script, environment):
    script.chat(says("Yes."), END)
    with typed_terminal("chat", environment=environment) as terminal:
        terminal.wait_for("> ")
        terminal.type('"""\r')
        terminal.wait_for("… ")
        terminal.type("not this\r")
        terminal.wait_for("… ")
        terminal.type(CTRL_D)
        terminal.wait_for("\ntetrad: the message was not finished, and is not sent\n> ")
        terminal.type("but this\r")
        terminal.wait_for("Yes.")
        terminal.wait_for("> ")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
    assert [questions(body) for body in script.bodies] == [["but this"]]


def test_lines_are_found_again_in_the_next_session(script, environment, tmp_path):
    script.chat(says("Yes."), END)
    for keys in ("Is it so?\r", f"{ARROW_UP}\r"):
        with typed_terminal("chat", environment=environment) as terminal:
            terminal.wait_for("> ")
            terminal.type(keys)
            terminal.wait_for("Yes.")
            terminal.wait_for("> ")
            terminal.type(CTRL_D)
            assert terminal.wait_for_end() == 0
    assert [questions(body) for body in script.bodies] == [["Is it so?"], ["Is it so?"]]
    (kept,) = (tmp_path / ".local/state").rglob("chat_history")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_lines_of_sessions_that_were_killed_are_found_again(script, environment, tmp_path):
    script.chat(says("Yes."), END)
    with (
        typed_terminal("chat", environment=environment) as first,
        typed_terminal("chat", environment=environment) as second,
    ):
        for terminal, keys in ((first, "one\r"), (second, "two\r"), (first, "/nothing\r")):
            terminal.wait_for("> ")
            terminal.type(keys)
            terminal.wait_for("Yes." if "/" not in keys else "there is no")
        first.wait_for("> ")
        first.type('"""\rlost, as it was never sent\r')
        first.wait_for("never sent")
    (kept,) = (tmp_path / ".local/state").rglob("chat_history")
    assert read_history(kept) == ["one", "two", "/nothing"]


def test_what_was_typed_of_an_unfinished_message_is_kept_at_the_end(environment, tmp_path):
    with typed_terminal("chat", environment=environment) as terminal:
        terminal.wait_for("> ")
        terminal.type('"""\r')
        terminal.wait_for("… ")
        terminal.type("half of it\r")
        terminal.wait_for("… ")
        terminal.interrupt()
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    (kept,) = (tmp_path / ".local/state").rglob("chat_history")
    assert read_history(kept) == ['"""', "half of it"]


def test_no_history_is_kept_where_none_is_wanted(script, environment, tmp_path):
    with typed_terminal("chat", "--no-history", environment=environment) as terminal:
        terminal.wait_for("> ")
        terminal.type("/system secret\r")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert not list(tmp_path.rglob("chat_history"))


def test_a_folder_that_cannot_be_written_keeps_nobody_from_talking(script, environment):
    with typed_terminal(
        "chat", environment={**environment, "XDG_STATE_HOME": "/proc/none"}
    ) as terminal:
        terminal.wait_for("> ")
        terminal.type("/help\r")
        terminal.wait_for("what was typed is not kept")
        terminal.wait_for("Ctrl-C stops an answer")
        terminal.wait_for("> ")
        terminal.type("/help\r")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
        assert terminal.raw.count(b"is not kept") == 1


def test_a_paste_of_several_lines_is_one_message(script, environment):
    script.chat(says("Yes."), END)
    with typed_terminal("chat", environment=environment) as terminal:
        terminal.wait_for("> ")
        if b"\x1b[?2004h" not in terminal.raw:
            pytest.skip("this Python's line editor has terminals mark no pastes")
        terminal.type("\x1b[200~one\rtwo\x1b[201~\r")
        terminal.wait_for("Yes.")
    assert questions(script.bodies[0]) == ["one\ntwo"]


def test_what_a_model_writes_is_markdown_and_never_steers_the_terminal(script, environment):
    hostile = "\x1b]0;title\x07\x1b[2J"
    script.chat(thinks(hostile), says(f"# Title\n\n**bold** {hostile}"), END)
    with typed_terminal("chat", "hi", environment=environment) as terminal:
        assert terminal.wait_for_end() == 0
        shown = terminal.raw
    assert b"\x1b]0;" not in shown
    assert b"\x1b[2J" not in shown
    assert b"\x1b[1mbold" in shown
    assert "␛]0;title␇␛[2J".encode() in shown


def test_plain_answers_are_shown_as_they_are(script, environment):
    script.chat(says("**Yes.**"), END)
    with typed_terminal("chat", "--plain", "hi", environment=environment) as terminal:
        assert terminal.wait_for_end() == 0
        assert b"**Yes.**\r\n" in terminal.raw
