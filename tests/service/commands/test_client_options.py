"""What the options say, and what is read of standard input."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import pytest

from service.client.errors import WrongQuestionError
from service.commands.client_options import is_at_a_terminal, read_stdin, request_fields

SILENCE = {"temperature": None, "max_tokens": None, "seed": None, "stop": None, "usage": False}


def test_what_is_not_said_is_left_to_the_server():
    assert request_fields(**SILENCE) == {}
    assert request_fields(**{**SILENCE, "temperature": 0, "seed": 0, "stop": []}) == {
        "temperature": 0, "seed": 0
    }  # fmt: skip


def test_an_input_that_cannot_be_read_is_told(monkeypatch):
    def fail(_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=fail)))
    with pytest.raises(WrongQuestionError, match="cannot be read: Input/output error"):
        read_stdin()


@pytest.mark.parametrize(
    ("stdin", "stdout", "is_at_one"),
    [(True, True, True), (True, False, False), (False, True, False), (None, True, False)],
)
def test_a_session_needs_somebody_who_types_and_reads(monkeypatch, stdin, stdout, is_at_one):
    for name, is_terminal in [("stdin", stdin), ("stdout", stdout)]:
        stream = None if is_terminal is None else SimpleNamespace(isatty=lambda so=is_terminal: so)
        monkeypatch.setattr(sys, name, stream)
    assert is_at_a_terminal() is is_at_one
