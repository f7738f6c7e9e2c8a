"""`tetrad complete`: goes on from a text, or fills a gap in a file; the model sees no template.

Standard output is what the model wrote, and nothing else. Exit codes are those of
`service.commands.client_options`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.client.errors import BrokenAnswerError, WrongQuestionError
from service.client.server import COMPLETION_PATH
from service.commands.client_options import (
    AskingOptions,
    exit_on_client_errors,
    read_texts,
    takes_asking_options,
)
from service.commands.conversation.asking import AnswerSoFar, show_answer, tell_end
from service.commands.download_options import say
from service.commands.gap_in_file import find_gap

if TYPE_CHECKING:
    from service.commands.gap_in_file import Gap

# Servers take 16 tokens where nothing is said.
DEFAULTS = AskingOptions(max_tokens=256)
CUT = ("length", "content_filter")  # ends of which half a text is left


@takes_asking_options
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
    asking: AskingOptions = DEFAULTS,
) -> None:
    """Go on from a text, or fill a gap in a file, by a running server."""
    with exit_on_client_errors():
        fields = asking.fields()
        gap = _find_gap(fim, texts, asking.schema, write=write)
        parts = _parts(gap, texts)
        answer = AnswerSoFar()
        with asking.connected() as server:
            fields["model"] = server.choose_model(asking.model)
            view = asking.view(markdown=False, ends_line=False)
            show_answer(server, COMPLETION_PATH, {**fields, **parts}, view, answer)
        try:
            if write and gap is not None:
                _fill(gap, answer)
        finally:
            tell_end(answer, usage=asking.usage)


def _fill(gap: Gap, answer: AnswerSoFar) -> None:
    if answer.finish_reason in CUT:
        raise BrokenAnswerError(f"the answer came in part; {gap.path} is left as it is")
    say(f"{gap.fill(answer.text)} characters were put into {gap.place}")


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
