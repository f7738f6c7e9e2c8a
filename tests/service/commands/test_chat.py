"""`tetrad chat` with one question."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.service.client.scripted_server import (
    DONE,
    END,
    UNTIL_LEFT,
    ScriptedServer,
    counts,
    error,
    event,
    says,
    scripted_server,
    thinks,
)
from tests.service.commands.asking_command import AskingCommand

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 60
SCHEMA = '{"type": "object"}'
TETRAD = [sys.executable, "-c", "from service.cli import main; main()"]


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.models("demo")
        yield running


@pytest.fixture
def tetrad(script, monkeypatch, capsys) -> AskingCommand:
    return AskingCommand(script, monkeypatch, capsys)


def test_a_question_is_answered_and_the_command_ends(tetrad, script):
    script.chat(thinks("hm"), says("Hello"), says(" there"), END)
    done = tetrad("chat", "Say hello.")
    assert (done.code, done.out, done.err) == (0, "Hello there\n", "")
    assert script.bodies == [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "Say hello."}],
            "stream": True,
        }
    ]


def test_every_option_reaches_the_request(tetrad, script, tmp_path):
    script.chat(says("{}"), counts(1, 1), END)
    (tmp_path / "key").write_text("sk-file\n")
    (tmp_path / "schema.json").write_text(SCHEMA)
    done = tetrad(
        "chat", "hi", "--model", "m", "--system", "Be brief.", "--temperature", "0.5",
        "--max-tokens", "7", "--seed", "3", "--stop", "a", "--stop", "b", "--usage",
        "--json", str(tmp_path / "schema.json"), "--api-key-file", str(tmp_path / "key"),
    )  # fmt: skip
    assert (done.code, done.out) == (0, "{}\n")
    assert done.err.startswith("tetrad: 1 tokens read, 1 written")
    assert [asked.path for asked in script.asked] == ["/v1/chat/completions"]
    assert script.asked[0].headers["authorization"] == "Bearer sk-file"
    body = script.bodies[0]
    assert [message["content"] for message in body.pop("messages")] == ["Be brief.", "hi"]
    assert body.pop("response_format")["json_schema"]["schema"] == {"type": "object"}
    assert body == {
        "model": "m", "temperature": 0.5, "max_tokens": 7, "seed": 3, "stop": ["a", "b"],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "stdin", "question"),
    [
        ([], "größe\n", "größe\n"),
        (["-"], "piped", "piped"),
        (["Translate:", "-"], "piped", "Translate:\n\npiped"),
        (["one", "two"], "not read", "one\n\ntwo"),
    ],
)
def test_a_question_may_be_piped(tetrad, script, arguments, stdin, question):
    script.chat(END)
    assert tetrad("chat", *arguments, stdin=stdin.encode()).code == 0
    assert script.bodies[0]["messages"][0]["content"] == question


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([], b"", "there is no text"),
        (["  "], b"", "there is no text"),
        (["-", "-"], b"x", "give `-` once"),
        ([], b"\xff", "no UTF-8"),
        (["hi", "--json", "{"], b"", "the schema is no JSON"),
        (["hi", "--url", "ftp://x"], b"", "is no address"),
        (["hi", "--api-key-file", "none-such"], b"", "none-such"),
    ],
)
def test_a_wrong_question_is_one_line_and_2_and_nothing_is_asked(
    tetrad, script, arguments, stdin, words
):
    done = tetrad("chat", *arguments, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not script.asked


@pytest.mark.parametrize("option", ["--max-tokens=0", "--temperature=-1", "--seed=x"])
def test_an_option_out_of_bounds_is_2(tetrad, option):
    assert tetrad("chat", "hi", option).code == 2


def test_too_long_an_input_is_not_read_to_its_end(tetrad, monkeypatch):
    monkeypatch.setattr("service.commands.client_options.MAX_INPUT_BYTES", 3)
    assert "more than 3 bytes" in tetrad("chat", stdin=b"four").err


def test_of_several_models_one_is_to_be_named(tetrad, script):
    script.replies.clear()
    script.models("a/b:c", "small")
    done = tetrad("chat", "hi")
    assert done.code == 2
    assert "a/b:c, small" in done.err


def test_nobody_there_is_3(tetrad):
    done = tetrad("chat", "hi", "--url", "127.0.0.1:9")
    assert done.code == 3
    assert "`tetrad serve`" in done.err


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "invalid_api_key", "TETRAD_API_KEY"),
        (404, "model_not_found", "no such model"),
        (429, "queue_full", "try again in 3 s"),
        (400, "context_length_exceeded", "no such model"),
    ],
)
def test_a_refusal_is_one_line_and_4(tetrad, script, status, code, words):
    script.reply(
        "/v1/chat/completions", error("no such model", code), status=status, retry_after="3"
    )
    done = tetrad("chat", "hi")
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    assert words in done.err


def test_a_servers_words_cannot_steer_the_terminal(tetrad, script):
    script.reply("/v1/chat/completions", error("\x1b[2Jgone\nend"), status=400)
    assert tetrad("chat", "hi").err == "tetrad: ?[2Jgone end\n"


def test_an_answer_that_breaks_off_is_shown_so_far_and_5(tetrad, script):
    script.chat(says("half"), event({"error": {"message": "out of memory"}}), DONE)
    done = tetrad("chat", "hi")
    assert (done.code, done.out) == (5, "half\n")
    assert done.err == "tetrad: the answer failed: out of memory\n"


def test_an_answer_that_was_to_be_json_and_is_not_is_5(tetrad, script):
    script.chat(says('{"a": '), says("", "length"), DONE)
    done = tetrad("chat", "hi", "--json", SCHEMA)
    assert (done.code, done.out) == (5, '{"a": \n')
    assert "--max-tokens" in done.err


def test_fields_that_the_server_takes_no_notice_of_are_told(tetrad, script):
    script.chat(says("a"), END, x_ignored_params="seed")
    done = tetrad("chat", "hi", "--seed", "1")
    assert (done.code, done.err) == (0, "tetrad: the server takes no notice of seed\n")


@pytest.fixture
def process(script, tmp_path):
    """Start the command as a process of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TETRAD_URL": script.url}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*TETRAD, *arguments], env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def test_ctrl_c_is_130_and_closes_the_connection(process, script):
    script.chat(says("Hello\n"), UNTIL_LEFT)
    with process("chat", "hi") as asking:
        assert asking.stdout.readline() == "Hello\n"
        asking.send_signal(signal.SIGINT)
        assert asking.wait(LIMIT_S) == 130
        assert asking.stderr.read() == ""
    assert script.has_left.wait(LIMIT_S)


def test_a_reader_that_leaves_is_141_without_a_word(process, script):
    script.chat(says("Hello\n"), *[says("x" * 10_000)] * 100, UNTIL_LEFT)
    with process("chat", "hi") as asking:
        assert asking.stdout.readline() == "Hello\n"
        asking.stdout.close()
        assert asking.wait(LIMIT_S) == 141
        assert asking.stderr.read() == ""


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        ("> /dev/full", 1, "the answer cannot be written: No space left on device"),
        ("<&-", 2, "there is no standard input; give a text"),
    ],
)
def test_streams_that_cannot_be_used_are_one_line(script, tmp_path, redirection, code, words):
    script.chat(says("Hello"), END)
    question = "hi" if ">" in redirection else ""
    command = f"{shlex.join(TETRAD)} chat {question} {redirection}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TETRAD_URL": script.url},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, f"tetrad: {words}\n")


def test_neither_help_nor_a_question_waits_for_torch(script, tmp_path):
    script.chat(says("a"), END)
    program = (
        "import sys\nfrom service.cli import main\n"
        "assert not {'httpx2', 'markdown_it', 'readline'} & set(sys.modules)\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "chat", "hi"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TETRAD_URL": script.url},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")
    assert json.loads(json.dumps(script.bodies[0]))["model"] == "demo"
