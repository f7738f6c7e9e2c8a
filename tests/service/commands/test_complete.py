"""`tetrad complete`: a text goes on, or a gap in a file is filled."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.service.client.scripted_server import (
    COMPLETION_END,
    DONE,
    ScriptedServer,
    counts,
    error,
    goes_on,
    scripted_server,
)
from tests.service.commands.asking_command import AskingCommand

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = "def add(a, b):\n    return \n"


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.models("demo")
        yield running


@pytest.fixture
def tetrad(script, monkeypatch, capsys) -> AskingCommand:
    return AskingCommand(script, monkeypatch, capsys)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "add.py"
    path.write_text(SOURCE)
    return path


def test_a_text_goes_on_and_nothing_is_added(tetrad, script):
    script.complete(goes_on("\n    return"), goes_on(" a + b"), COMPLETION_END)
    done = tetrad("complete", "def add(a, b):", "--temperature", "0")
    assert (done.code, done.out, done.err) == (0, "\n    return a + b", "")
    assert script.bodies == [
        {
            "model": "demo", "prompt": "def add(a, b):", "max_tokens": 256, "temperature": 0.0,
            "stream": True,
        }
    ]  # fmt: skip


def test_a_text_may_be_piped_as_it_is(tetrad, script):
    script.complete(COMPLETION_END)
    assert tetrad("complete", stdin=b"a\n\n").code == 0
    assert script.bodies[0]["prompt"] == "a\n\n"


def test_json_and_usage_are_asked_for(tetrad, script):
    script.complete(goes_on("[1]"), counts(2, 3), COMPLETION_END)
    done = tetrad("complete", "x", "--json", '{"type": "array"}', "--usage")
    assert (done.code, done.out) == (0, "[1]\n")
    assert "2 tokens read, 3 written" in done.err
    assert script.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "array"}


def test_a_gap_is_filled_with_the_text_on_both_sides_of_it(tetrad, script, file):
    script.complete(goes_on("a + b"), COMPLETION_END)
    done = tetrad("complete", "--fim", f"{file}:2:12")
    assert (done.code, done.out, done.err) == (0, "a + b", "")
    assert script.bodies[0]["prompt"] == "def add(a, b):\n    return "
    assert script.bodies[0]["suffix"] == "\n"
    assert file.read_text() == SOURCE


def test_the_middle_is_put_into_the_file_where_that_is_asked_for(tetrad, script, file):
    script.complete(goes_on("a + b"), COMPLETION_END)
    done = tetrad("complete", "--fim", f"{file}:2:12", "--write")
    assert (done.code, done.out) == (0, "a + b")
    assert "5 characters were put into" in done.err
    assert file.read_text() == "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "pieces", [[goes_on("a +")], [goes_on("a +"), b'data: {"error": "x"}\n\n']]
)
def test_half_a_middle_is_never_put_into_the_file(tetrad, script, file, pieces):
    script.complete(*pieces)
    assert tetrad("complete", "--fim", f"{file}:2:12", "--write").code == 5
    assert file.read_text() == SOURCE


def test_a_cut_middle_is_told(tetrad, script, file):
    script.complete(goes_on("a +", "length"), DONE)
    done = tetrad("complete", "--fim", f"{file}:2:12")
    assert (done.code, done.out) == (0, "a +")
    assert "--max-tokens allows more" in done.err


def test_a_cut_middle_is_never_put_into_the_file(tetrad, script, file):
    script.complete(goes_on("a +", "length"), DONE)
    done = tetrad("complete", "--fim", f"{file}:2:12", "--write")
    assert (done.code, done.out) == (5, "a +")
    assert "--max-tokens allows more" in done.err
    assert f"the answer came in part; {file} is left as it is" in done.err
    assert file.read_text() == SOURCE


def test_an_answer_that_came_and_cannot_be_written_is_1(tetrad, script, file, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuse)
    script.complete(goes_on("a + b"), COMPLETION_END)
    done = tetrad("complete", "--fim", f"{file}:2:12", "--write")
    assert (done.code, done.out) == (1, "a + b")
    assert done.err == f"tetrad: {file} cannot be written: no\n"
    assert file.read_text() == SOURCE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--write"], "give --fim"),
        (["x", "--fim", "add.py:1:1"], "leave TEXT and --json out"),
        (["--fim", "add.py:1:1", "--json", "{}"], "leave TEXT and --json out"),
        (["--fim", "add.py"], "give FILE:LINE:COL"),
        (["--fim", "none.py:1:1"], "none.py"),
        (["--fim", "add.py:9:1"], "lines 1 to 3"),
        ([], "there is no text"),
    ],
)
def test_a_wrong_question_is_one_line_and_2_and_nothing_is_asked(
    tetrad, script, file, monkeypatch, arguments, words
):
    monkeypatch.chdir(file.parent)
    done = tetrad("complete", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not script.asked


def test_a_model_that_cannot_infill_is_told_in_the_servers_words(tetrad, script, file):
    refused = error("demo cannot infill", "infilling_not_supported")
    script.reply("/v1/completions", refused, status=400)
    done = tetrad("complete", "--fim", f"{file}:1:1")
    assert (done.code, done.err) == (4, "tetrad: demo cannot infill\n")
