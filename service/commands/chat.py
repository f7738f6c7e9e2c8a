"""`tetrad chat`: talks to a running server, in a session or with one question.

With a text, or without a terminal, one question is asked and its answer is standard output. Exit
codes are those of `service.commands.client_options`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from service.commands.client_options import (
    AskingOptions,
    exit_on_client_errors,
    is_at_a_terminal,
    read_texts,
    takes_asking_options,
)
from service.commands.conversation.dialogue import Dialogue
from service.commands.conversation.line_input import line_input
from service.commands.conversation.session import ChatSession


@takes_asking_options
def chat(
    asking: AskingOptions,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="One question, answered and done; `-` is standard input. A session without any.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told beforehand.")
    ] = None,
    markdown: Annotated[
        bool | None,
        typer.Option(
            "--markdown/--plain", help="Render answers, or show them as they are, in a terminal."
        ),
    ] = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history", help="Keep what is typed for the next session's arrow keys."
        ),
    ] = True,
) -> None:
    """Talk to a running server: one question, or a session where none is given."""
    with exit_on_client_errors():
        fields = asking.fields()
        is_session = not texts and is_at_a_terminal()
        question = None if is_session else read_texts(texts or [])
        with asking.connected() as server:
            chat = ChatSession(
                server,
                Dialogue(system),
                model=server.choose_model(asking.model),
                fields=fields,
                make_view=partial(asking.view, markdown=markdown, ends_line=True),
                tells_usage=asking.usage,
            )
            if question is not None:
                chat.ask(question)
                return
            with line_input(keeps_history=history) as lines:
                chat.run(lines)
