"""`tetrad chat`: talks to a running server, in a session or with one question.

With a text, or without a terminal, one question is asked and its answer is standard output. Exit
codes are those of `service.commands.client_options`.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

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
    is_at_a_terminal,
    read_texts,
    request_fields,
)
from service.commands.conversation.answer_view import choose_view
from service.commands.conversation.dialogue import Dialogue
from service.commands.conversation.line_input import line_input
from service.commands.conversation.session import ChatSession
from service.commands.json_schema_option import JsonView, response_format

if TYPE_CHECKING:
    from service.commands.conversation.answer_view import AnswerView


def chat(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="One question, answered and done; `-` is standard input. A session without any.",
        ),
    ] = None,
    url: UrlOption = None,
    model: ModelOption = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told beforehand.")
    ] = None,
    temperature: TemperatureOption = None,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    schema: SchemaOption = None,
    markdown: Annotated[
        bool | None,
        typer.Option(
            "--markdown/--plain", help="Render answers, or show them as they are, in a terminal."
        ),
    ] = None,
    usage: UsageOption = False,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history", help="Keep what is typed for the next session's arrow keys."
        ),
    ] = True,
    api_key_file: KeyFileOption = None,
) -> None:
    """Talk to a running server: one question, or a session where none is given."""
    with exit_on_client_errors():
        fields = request_fields(
            temperature=temperature, max_tokens=max_tokens, seed=seed, stop=stop, usage=usage
        )
        if schema is not None:
            fields["response_format"] = response_format(schema)
        is_session = not texts and is_at_a_terminal()
        question = None if is_session else read_texts(texts or [])
        with connected(url, api_key_file) as server:
            chat = ChatSession(
                server,
                Dialogue(system),
                model=server.choose_model(model),
                fields=fields,
                make_view=partial(_view, markdown=markdown, is_json=schema is not None),
                tells_usage=usage,
            )
            if question is not None:
                chat.ask(question)
                return
            with line_input(keeps_history=history) as lines:
                chat.run(lines)


def _view(*, markdown: bool | None, is_json: bool) -> AnswerView:
    is_terminal = sys.stdout.isatty()
    if is_json:
        return JsonView(is_terminal=is_terminal)
    return choose_view(markdown=markdown, is_terminal=is_terminal, ends_line=True)
