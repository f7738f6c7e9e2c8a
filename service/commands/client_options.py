"""What commands that ask a running server have in common: options, errors and exit codes.

Exit codes: 0 the answer came; 1 it could not be written; 2 an option, a file or a name is wrong; 3
nobody answers at the address; 4 the server refused; 5 the answer failed or broke off; 130 Ctrl-C;
141 whoever read the output left.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.client.address import base_url, default_address
from service.client.errors import ClientError, WrongQuestionError
from service.client.key import find_key
from service.commands.download_options import INTERRUPTED, say
from service.settings.names import URL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.client.server import Server

CANNOT_WRITE = 1
READER_LEFT = 141  # 128 and SIGPIPE's number, as shells count
MAX_INPUT_BYTES = 16 * 1024 * 1024
STDIN = "-"

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help=f"The server, with or without /v1; {default_address()} by default. ({URL_VARIABLE})",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File that holds the server's key. (TETRAD_API_KEY, TETRAD_API_KEY_FILE,"
        " OPENAI_API_KEY)",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="One of several models.")
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, metavar="NUMBER", help="0 picks the likeliest tokens.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option(min=1, metavar="TOKENS", help="Most tokens of an answer.")
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="NUMBER", help="Makes sampling repeatable.")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Text that ends an answer; repeat it for several."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="SCHEMA", help="Answer in JSON: by a schema, in a file or typed here."
    ),
]
UsageOption = Annotated[
    bool, typer.Option("--usage", help="Tell tokens and speed afterwards, on standard error.")
]


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


@contextmanager
def connected(url: str | None, api_key_file: Path | None) -> Iterator[Server]:
    """Find the server and its key, and talk to it while the block runs. Raises ClientError."""
    from service.client.server import Server

    base = base_url(url or os.environ.get(URL_VARIABLE) or default_address())
    with Server(base, find_key(api_key_file, os.environ, base)) as server:
        yield server


def request_fields(
    *,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    stop: Sequence[str] | None,
    usage: bool,
) -> dict[str, object]:
    """Make the fields of a request that the options say; silence leaves a field out."""
    fields: dict[str, object | None] = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": list(stop) if stop else None,
        "stream_options": {"include_usage": True} if usage else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


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
