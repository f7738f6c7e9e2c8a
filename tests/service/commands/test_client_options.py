"""What the options say, and what is read of standard input."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from service.client.errors import WrongQuestionError
from service.commands.client_options import (
    AskingOptions,
    is_at_a_terminal,
    read_stdin,
    takes_asking_options,
)

SEEDED = AskingOptions(seed=7)


def test_what_is_not_said_is_left_to_the_server():
    assert AskingOptions().fields() == {}
    assert AskingOptions(temperature=0, seed=0, stop=[]).fields() == {"temperature": 0, "seed": 0}


def test_commands_take_the_same_options_beside_their_own():
    taken = []

    @takes_asking_options
    def ask(own: Annotated[int, typer.Option()] = 1, asking: AskingOptions = SEEDED) -> None:
        """Ask something."""
        taken.append((own, asking))

    app = typer.Typer()
    app.command()(ask)
    runner = CliRunner()
    assert runner.invoke(app, ["--stop", "a", "--own", "2", "--json", "{}"]).exit_code == 0
    assert runner.invoke(app, ["--seed", "8"]).exit_code == 0
    assert taken == [
        (2, AskingOptions(seed=7, stop=["a"], schema="{}")),
        (1, AskingOptions(seed=8)),
    ]
    told = runner.invoke(app, ["--help"]).output
    assert "Ask something." in told
    assert all(name in told for name in ("--own", "--url", "--model", "--json", "--api-key-file"))


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
