"""`--json`: which schemas are taken, and what is shown."""

from __future__ import annotations

import json

import pytest

from service.client.answer import AnswerPiece
from service.client.errors import BrokenAnswerError, WrongQuestionError
from service.commands.json_schema_option import JsonView, response_format

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


def test_a_schema_is_typed_or_in_a_file(tmp_path, monkeypatch):
    expected = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    text = json.dumps(SCHEMA)
    assert response_format(f"  {text}") == expected
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.json").write_text(text)
    assert response_format("schema.json") == expected


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"type": ', "the schema is no JSON"),
        ("none.json", "none.json"),
        ("", "--json was given no schema; type one, or name a file"),
        (" ", "--json was given no schema"),
        (".", "folder"),
        ('{"a":' * 100_000, "the schema is no JSON"),
    ],
)
def test_what_is_no_schema_is_refused(schema, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongQuestionError, match=words):
        response_format(schema)


@pytest.mark.parametrize(("content", "words"), [("[]", "no JSON object"), ("x", "is no JSON")])
def test_a_file_without_a_schema_is_refused(tmp_path, content, words):
    (tmp_path / "file").write_text(content)
    with pytest.raises(WrongQuestionError, match=words):
        response_format(str(tmp_path / "file"))


def view_of(*texts: str, is_terminal: bool, finish_reason: str = "stop") -> JsonView:
    view = JsonView(is_terminal=is_terminal)
    for text in texts:
        view.show(AnswerPiece(text=text))
    view.show(AnswerPiece(finish_reason=finish_reason))
    view.end()
    return view


def test_a_pipe_gets_the_json_as_it_was_written(capsys):
    view_of('{"a":', "1 }", is_terminal=False).check()
    assert capsys.readouterr().out == '{"a":1 }\n'


def test_a_terminal_gets_it_indented_and_harmless(capsys):
    view_of('{"größe": 1, "b": "\\u001b[2J\\u009b\\u202e"}', is_terminal=True).check()
    assert capsys.readouterr().out == '{\n  "größe": 1,\n  "b": "\\u001b[2J��"\n}\n'


@pytest.mark.parametrize("answer", ["null", "0", "false", '""', "[]"])
def test_json_that_says_little_is_json(answer):
    view_of(answer, is_terminal=True).check()


def test_what_is_no_json_is_shown_and_told(capsys):
    with pytest.raises(BrokenAnswerError, match="--max-tokens"):
        view_of('{"a": "\x1b', is_terminal=True, finish_reason="length").check()
    with pytest.raises(BrokenAnswerError, match="response_format"):
        view_of("Sure!", is_terminal=False).check()
    with pytest.raises(BrokenAnswerError, match="no JSON"):
        view_of(is_terminal=False).check()
    assert capsys.readouterr().out == '{"a": "␛\nSure!\n'
