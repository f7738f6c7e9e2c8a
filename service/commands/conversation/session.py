"""A chat in a terminal: what is typed is a question, or a command that begins with `/`.

Ctrl-C stops the answer that comes, and what has come of it stays; Ctrl-D ends the session.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from service.client.errors import ClientError, UnreachableError
from service.client.refusals import CONTEXT_LENGTH
from service.client.server import CHAT_PATH
from service.commands.conversation.asking import AnswerSoFar, show_answer, tell_end
from service.commands.download_options import say
from service.commands.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.client.server import Server
    from service.commands.conversation.answer_view import AnswerView
    from service.commands.conversation.dialogue import Dialogue
    from service.commands.conversation.line_input import LineInput

HELP = '''\
/system [TEXT]  show what the model is told beforehand, or tell it TEXT
/reset          begin anew; the system prompt stays
/save FILE      write the dialogue to a new file: JSON if it is called .json, else markdown
/model [NAME]   list the server's models, or go on with NAME
/quit, /exit    end (Ctrl-D, too)
A line that ends in \\ goes on with the next; so do all lines between two of """. // begins a
message with a slash. Ctrl-C stops an answer.'''


class ChatSession:
    """One dialogue with one server."""

    def __init__(
        self,
        server: Server,
        dialogue: Dialogue,
        *,
        model: str,
        fields: Mapping[str, object],
        make_view: Callable[[], AnswerView],
        tells_usage: bool,
    ) -> None:
        """fields: of each request, besides model and messages."""
        self._server = server
        self._dialogue = dialogue
        self._model = model
        self._fields = fields
        self._make_view = make_view
        self._tells_usage = tells_usage
        self._has_ended = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: _show(HELP),
            "/system": self._tell_system,
            "/reset": self._reset,
            "/save": self._save,
            "/model": self._change_model,
            "/quit": self._quit,
            "/exit": self._quit,
        }

    def run(self, lines: LineInput) -> None:
        """Answer what is typed until it ends."""
        _show(f"{printable(self._model)} at {self._server.url}; /help tells more, Ctrl-D ends")
        while not self._has_ended:
            try:
                message = lines.read_message()
            except KeyboardInterrupt:
                _show("")
                continue
            if message is None:
                _show("")
                return
            self.take(message)

    def take(self, message: str) -> None:
        """Carry out a command, or ask what was typed."""
        if not message.strip():
            return
        word, *rest = message.strip().split(maxsplit=1)
        if not word.startswith("/"):
            self._ask_in_session(message)
        elif word.startswith("//"):
            self._ask_in_session(message.strip().removeprefix("/"))
        elif command := self._commands.get(word):
            self._run_command(command, "".join(rest))
        else:
            say(f"there is no {word}; /help lists the commands, // begins a message with a slash")

    def _run_command(self, command: Callable[[str], None], rest: str) -> None:
        try:
            command(rest)
        except ClientError as error:
            say(str(error))
        except KeyboardInterrupt:
            _show("")

    def _ask_in_session(self, text: str) -> None:
        try:
            self.ask(text)
        except ClientError as error:
            say(_explain(error))
        except KeyboardInterrupt:
            say("stopped")

    def ask(self, text: str) -> None:
        """Ask one question; what came of the answer belongs to the dialogue, however it ended.

        Raises ClientError, and KeyboardInterrupt where the user stops it.
        """
        self._dialogue.ask(text)
        body = {**self._fields, "model": self._model, "messages": self._dialogue.messages()}
        answer = AnswerSoFar()
        try:
            show_answer(self._server, CHAT_PATH, body, self._make_view(), answer)
        finally:
            self._dialogue.answer(answer.text)
        tell_end(answer, usage=self._tells_usage)

    def _tell_system(self, text: str) -> None:
        if text:
            self._dialogue.system = text
            say("the system prompt is set, from the next question on")
        elif self._dialogue.system:
            _show(printable(self._dialogue.system))
        else:
            say("there is no system prompt; /system TEXT sets one")

    def _reset(self, _: str) -> None:
        self._dialogue.turns.clear()
        say("the dialogue begins anew")

    def _save(self, name: str) -> None:
        if not name:
            say("name a file, as in /save dialogue.md")
            return
        self._dialogue.save(Path(name))
        say(f"the dialogue is in {name}")

    def _change_model(self, name: str) -> None:
        names = self._server.model_names()
        if name in names:
            self._model = name
            say(f"{name} answers from now on")
            return
        if name:
            say(f"there is no {name}")
        for one in names:
            _show(f"{'*' if one == self._model else ' '} {printable(one)}")

    def _quit(self, _: str) -> None:
        self._has_ended = True


def _explain(error: ClientError) -> str:
    if getattr(error, "code", None) == CONTEXT_LENGTH:
        return f"{error}, or begin anew with /reset"
    if isinstance(error, UnreachableError):
        return f"{error}. The question is not kept; what was said before is"
    return str(error)


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
