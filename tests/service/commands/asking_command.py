"""`tetrad chat` and `tetrad complete` in the test's process, against a scripted server."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from service.cli import main

if TYPE_CHECKING:
    from tests.service.client.scripted_server import ScriptedServer

KEY_VARIABLES = ("TETRAD_API_KEY", "TETRAD_API_KEY_FILE", "OPENAI_API_KEY")


class AskingCommand:
    """Runs a command; what it is piped is the caller's to say."""

    def __init__(
        self,
        script: ScriptedServer,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("TETRAD_URL", script.url)
        for name in KEY_VARIABLES:
            monkeypatch.delenv(name, raising=False)

    def __call__(self, *arguments: str, stdin: bytes = b"") -> SimpleNamespace:
        self._monkeypatch.setattr(sys, "argv", ["tetrad", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=said.out, err=said.err)
