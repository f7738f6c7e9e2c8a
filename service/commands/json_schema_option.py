"""`--json SCHEMA`: reads the schema, and shows the JSON that was made by it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from service.client.errors import BrokenAnswerError, WrongQuestionError
from service.commands.conversation.answer_view import AnswerView
from service.commands.text import harmless
from service.errors import SettingsError
from service.settings.files import read_text_file

if TYPE_CHECKING:
    from service.client.answer import AnswerPiece


def response_format(schema: str) -> dict[str, object]:
    """Make the field `response_format`; schema: JSON, or the name of a file that holds it.

    Raises WrongQuestionError.
    """
    if not schema.strip():
        raise WrongQuestionError("--json was given no schema; type one, or name a file")
    is_typed = schema.lstrip().startswith("{")
    text = schema if is_typed else _read(Path(schema))
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = "the schema" if is_typed else schema
        raise WrongQuestionError(f"{where} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise WrongQuestionError('the schema is no JSON object, as in {"type": "object"}')
    named = {"name": "answer", "schema": read, "strict": True}
    return {"type": "json_schema", "json_schema": named}


class JsonView(AnswerView):
    """Gathers an answer in JSON; a terminal gets it indented, a pipe as the model wrote it."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal
        self._text = ""
        self._finish_reason: str | None = None

    def show(self, piece: AnswerPiece) -> None:
        """Gather what has come."""
        self._text += piece.text
        self._finish_reason = piece.finish_reason or self._finish_reason

    def end(self) -> None:
        """Write what came, on lines of its own."""
        sys.stdout.write(self._shown() + "\n" if self._text else "")
        sys.stdout.flush()

    def check(self) -> None:
        """Raise BrokenAnswerError where the answer is no JSON."""
        if self._parsed() is not None or self._text.strip() == "null":
            return
        if self._finish_reason == "length":
            raise BrokenAnswerError("the JSON was cut: it has more tokens than --max-tokens allows")
        raise BrokenAnswerError("the answer is no JSON; the server may not know response_format")

    def _shown(self) -> str:
        parsed = self._parsed() if self._is_terminal else None
        if parsed is None:
            return harmless(self._text) if self._is_terminal else self._text
        return harmless(json.dumps(parsed, indent=2, ensure_ascii=False))

    def _parsed(self) -> object:
        try:
            return json.loads(self._text)
        except (ValueError, RecursionError):
            return None


def _read(path: Path) -> str:
    try:
        return read_text_file(path.expanduser(), "schema")
    except (SettingsError, UnicodeDecodeError) as error:
        raise WrongQuestionError(str(error)) from error
