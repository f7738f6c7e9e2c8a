"""`tetrad complete`: goes on from a text, or fills a gap in a file; the model sees no template.

Standard output is what the model wrote, and nothing else. Exit codes are those of
`service.commands.client_options`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.client.errors import WrongQuestionError
from service.client.server import COMPLETION_PATH
from service.commands.client_options import (
    KeyFileOption,
    MaxTokensOption,
    ModelOption,
    SchemaOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    UrlOption,
    UsageOption,
    connected,
    exit_on_client_errors,
    read_texts,
    request_fields,
)
from service.commands.conversation.answer_view import choose_view
from service.commands.conversation.asking import AnswerSoFar, show_answer, tell_end
from service.commands.download_options import say
from service.commands.gap_in_file import find_gap
from service.commands.json_schema_option import JsonView, response_format

if TYPE_CHECKING:
    from service.commands.conversation.answer_view import AnswerView
    from service.commands.gap_in_file import Gap

MAX_TOKENS = 256  # servers take 16 where nothing is said


def complete(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", help="What to go on from; `-`, or none, is standard input."
        ),
    ] = None,
    fim: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:LINE:COL",
            help="Fill in at this place of a file; both count from 1, in characters.",
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put what --fim gives into the file.")
    ] = False,
    url: UrlOption = None,
    model: ModelOption = None,
    temperature: TemperatureOption = None,
    max_tokens: MaxTokensOption = MAX_TOKENS,
    seed: SeedOption = None,
    stop: StopOption = None,
    schema: SchemaOption = None,
    usage: UsageOption = False,
    api_key_file: KeyFileOption = None,
) -> None:
    """Go on from a text, or fill a gap in a file, by a running server."""
    with exit_on_client_errors():
        fields = request_fields(
            temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop, usage=usage
        )
        if schema is not None:
            fields["response_format"] = response_format(schema)
        gap = _find_gap(fim, texts, schema, write=write)
        parts = _parts(gap, texts)
        answer = AnswerSoFar()
        with connected(url, api_key_file) as server:
            fields["model"] = server.choose_model(model)
            view = _view(is_json=schema is not None)
            show_answer(server, COMPLETION_PATH, {**fields, **parts}, view, answer)
        if write and gap is not None:
            gap.fill(answer.text)
            say(f"{len(answer.text)} characters were put into {gap.place}")
        tell_end(answer, usage=usage)


def _find_gap(
    place: str | None, texts: list[str] | None, schema: str | None, *, write: bool
) -> Gap | None:
    if place is None:
        if write:
            raise WrongQuestionError("--write puts what --fim gives into its file; give --fim")
        return None
    if texts or schema:
        raise WrongQuestionError("--fim takes its text from the file; leave TEXT and --json out")
    return find_gap(place)


def _parts(gap: Gap | None, texts: list[str] | None) -> dict[str, object]:
    if gap is None:
        return {"prompt": read_texts(texts or [])}
    return {"prompt": gap.prefix, "suffix": gap.suffix}


def _view(*, is_json: bool) -> AnswerView:
    is_terminal = sys.stdout.isatty()
    if is_json:
        return JsonView(is_terminal=is_terminal)
    return choose_view(markdown=False, is_terminal=is_terminal, ends_line=False)
