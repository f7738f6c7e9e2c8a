"""What commands that ask a running server have in common: options, errors and exit codes.

Exit codes: 0 the answer came; 1 it could not be written; 2 an option, a file or a name is wrong; 3
nobody answers at the address; 4 the server refused; 5 the answer failed, broke off or is not what
it was to be; 130 Ctrl-C; 141 whoever read the output left.
"""

from __future__ import annotations

import inspect
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.client.address import base_url, default_address
from service.client.errors import ClientError, WrongQuestionError
from service.client.key import find_key
from service.commands.conversation.answer_view import choose_view
from service.commands.download_options import INTERRUPTED, say
from service.commands.json_schema_option import JsonView, response_format
from service.settings.names import URL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.client.server import Server
    from service.commands.conversation.answer_view import AnswerView

CANNOT_WRITE = 1
READER_LEFT = 141  # 128 and SIGPIPE's number, as shells count
MAX_INPUT_BYTES = 16 * 1024 * 1024
STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOptions:
    """What a command is told of the server, of what it asks there, and of the answer's shape."""

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help=f"The server, with or without /v1; {default_address()} by default."
            f" ({URL_VARIABLE})",
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="One of several models.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(min=0, metavar="NUMBER", help="0 picks the likeliest tokens.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Most tokens of an answer.")
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Makes sampling repeatable.")
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that ends an answer; repeat it for several."),
    ] = None
    schema: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="SCHEMA",
            help="Answer in JSON: by a schema, in a file or typed here.",
        ),
    ] = None
    usage: Annotated[
        bool, typer.Option("--usage", help="Tell tokens and speed afterwards, on standard error.")
    ] = False
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that holds the server's key. (TETRAD_API_KEY, TETRAD_API_KEY_FILE,"
            " OPENAI_API_KEY)",
        ),
    ] = None

    def fields(self) -> dict[str, object]:
        """Make the fields of a request; silence leaves one out. Raises WrongQuestionError."""
        fields: dict[str, object | None] = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stop": self.stop or None,
            "stream_options": {"include_usage": True} if self.usage else None,
            "response_format": None if self.schema is None else response_format(self.schema),
        }
        return {name: value for name, value in fields.items() if value is not None}

    @contextmanager
    def connected(self) -> Iterator[Server]:
        """Find the server and its key, and talk to it while the block runs. Raises ClientError."""
        from service.client.server import Server

        base = base_url(self.url or os.environ.get(URL_VARIABLE) or default_address())
        with Server(base, find_key(self.api_key_file, os.environ, base)) as server:
            yield server

    def view(self, *, markdown: bool | None, ends_line: bool) -> AnswerView:
        """Make the view of one answer, which in a terminal may be rendered."""
        is_terminal = sys.stdout.isatty()
        if self.schema is not None:
            return JsonView(is_terminal=is_terminal)
        return choose_view(markdown=markdown, is_terminal=is_terminal, ends_line=ends_line)


def takes_asking_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of AskingOptions, behind its own, for its parameter `asking`.

    A default of that one holds the options' defaults.
    """
    taken = dict(inspect.signature(command, eval_str=True).parameters)
    asking = taken["asking"].default
    defaults = AskingOptions() if asking is inspect.Parameter.empty else asking
    shared = [
        parameter.replace(default=getattr(defaults, name))
        for name, parameter in inspect.signature(AskingOptions, eval_str=True).parameters.items()
    ]
    own = [parameter for name, parameter in taken.items() if name != "asking"]

    def run(**given: Any) -> None:
        of_asking = {parameter.name: given.pop(parameter.name) for parameter in shared}
        command(**given, asking=AskingOptions(**of_asking))

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@contextmanager
def exit_on_client_errors() -> Iterator[None]:
    """End the command with one line and its code where something is wrong, or the user stops it."""
    try:
        yield
        sys.stdout.flush()
    except ClientError as error:
        say(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # below the terminal's own ^C
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit(READER_LEFT) from None
    except OSError as error:  # a full disk, for one
        _drop_output()
        say(f"the answer cannot be written: {error.strerror}")
        raise typer.Exit(CANNOT_WRITE) from error


def _drop_output() -> None:
    """Let what is left in the buffer go nowhere, or it would be tried again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_texts(texts: Sequence[str]) -> str:
    """Join the texts of the command line with empty lines between; `-` is standard input.

    Without any, standard input is the text. Raises WrongQuestionError.
    """
    if texts.count(STDIN) > 1:
        raise WrongQuestionError("standard input can be read once; give `-` once")
    parts = [read_stdin() if text == STDIN else text for text in texts or [STDIN]]
    text = "\n\n".join(parts)
    if not text.strip():
        raise WrongQuestionError("there is no text; give one, or pipe it in")
    return text


def is_at_a_terminal() -> bool:
    """Tell whether somebody types, and reads what is written."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def read_stdin() -> str:
    """Read standard input to its end. Raises WrongQuestionError."""
    if sys.stdin is None:  # as Python has it where a program was started without
        raise WrongQuestionError("there is no standard input; give a text")
    try:
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise WrongQuestionError(f"standard input cannot be read: {error.strerror}") from error
    if len(data) > MAX_INPUT_BYTES:
        raise WrongQuestionError(f"standard input has more than {MAX_INPUT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WrongQuestionError(f"standard input is no UTF-8 text: {error}") from error
