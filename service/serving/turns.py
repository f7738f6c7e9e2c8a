"""From a dialogue to what the engine is asked: the prompt, the answer's form, and how it is read.

Shared by every API that takes dialogues. Knows no HTTP and no API's names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from service.errors import InvalidFieldError
from service.grammars.errors import InvalidGrammarError
from service.serving.generation_request import AnswerForm, GenerationRequest
from service.serving.prompts import Prompt, room_behind
from service.serving.text_lanes import forms
from service.serving.thought_tokens import ThoughtMarks
from service.serving.turn_prompts import (
    AskedTurn,
    render_turn,
    settled,
    tool_format_of,
)
from service.tools.calls import ToolMode, ToolUse
from service.tools.pieces import Pieces
from service.tools.reasoning_reader import ReasoningReader
from service.tools.turn_form import InvalidToolError, form_behind_thoughts, form_of_calls
from service.tools.turn_grammar import Thoughts
from service.tools.turn_reader import PlainReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.request import Terms
    from service.grammars.wanted import TextForm
    from service.serving.sampling import SamplingOptions
    from service.serving.served_model import ServedModel
    from service.tools.formats import ToolFormat
    from service.tools.turn_reader import TurnReader

__all__ = ["AskedTurn", "PlannedTurn", "TurnLength", "plan_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLength:
    """How many tokens of an answer a request wants."""

    asked: int | None = None  # None: as many as the context leaves room for
    param: str = "max_tokens"  # the request's field that errors name
    is_cut_to_room: bool = False  # more than there is room for is no error


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTurn:
    """What the engine is asked for a turn."""

    token_ids: Sequence[int]
    param: str  # the request's field that errors on the prompt name
    text_form: TextForm | None  # what was asked for, or what the tools make necessary
    new_reader: Callable[[], TurnReader]  # one for each choice
    kept_token_ids: frozenset[int] = field(default=frozenset())  # special pieces the reader needs
    thought_marks: ThoughtMarks | None = None
    # Fields of tools whose schema cannot be followed, so that any arguments may come.
    unfollowed: Sequence[str] = ()

    def request(
        self,
        model: ServedModel,
        length: TurnLength,
        *,
        options: SamplingOptions,
        form: AnswerForm,
        terms: Terms,
        num_choices: int = 1,
    ) -> GenerationRequest:
        """Return what is generated, within the model's context. Raises ContextLengthError.

        form: what the request says of it; what the turn's reader needs is added here.
        """
        asked = length.asked
        room = room_behind(
            len(self.token_ids),
            None if length.is_cut_to_room else asked,
            model.engine.max_model_len,
            prompt_param=self.param,
            length_param=length.param,
        )
        return GenerationRequest(
            prompts=[Prompt(self.token_ids)],
            max_tokens=[room if asked is None else min(asked, room)],
            num_choices=num_choices,
            options=options,
            form=replace(
                form, kept_token_ids=self.kept_token_ids, thought_marks=self.thought_marks
            ),
            text_form=self.text_form,
            terms=terms,
        )

    @property
    def is_plain(self) -> bool:
        """Whether the turn is nothing but text."""
        return self.new_reader is PlainReader


async def plan_turn(asked: AskedTurn, model: ServedModel) -> PlannedTurn:
    """Render a dialogue, and say how its answer is written and read.

    Raises a RequestError or TextError.
    """
    template = model.require_chat_template()
    tool_format = tool_format_of(asked, template)
    asked = settled(asked, tool_format, template)
    rendered = await render_turn(asked, model)
    marks = template.reasoning_marks
    if tool_format is None and marks is None:
        return PlannedTurn(
            token_ids=rendered.token_ids,
            param=asked.param,
            text_form=asked.text_form,
            new_reader=PlainReader,
        )
    thoughts = None if marks is None else Thoughts(marks, rendered.opens_reasoning)
    pieces = Pieces.of(model.tokenizer)
    text_form, unfollowed = await _form(asked, tool_format, pieces, thoughts)
    return PlannedTurn(
        token_ids=rendered.token_ids,
        param=asked.param,
        text_form=text_form,
        new_reader=partial(_new_reader, asked.tools, tool_format, thoughts),
        kept_token_ids=pieces.hidden_ids(
            (*(tool_format.marks if tool_format else ()), *(marks or ()))
        ),
        thought_marks=None if marks is None else ThoughtMarks(*marks, rendered.opens_reasoning),
        unfollowed=unfollowed,
    )


async def _form(
    asked: AskedTurn, tool_format: ToolFormat | None, pieces: Pieces, thoughts: Thoughts | None
) -> tuple[TextForm | None, Sequence[str]]:
    """Return the form of the whole turn, and the fields that it cannot follow."""
    try:
        if tool_format is not None:
            made = await forms.run(
                partial(form_of_calls, asked.tools, tool_format, pieces, thoughts, asked.text_form)
            )
            unfollowed = [asked.field_of(place) for place in made.unfollowed]
            if asked.text_form is not None and asked.tools.mode is ToolMode.REQUIRED:
                unfollowed.append(asked.text_form.param)  # there is no text
            return made.text_form, unfollowed
        if asked.text_form is None or thoughts is None:
            return asked.text_form, ()
        form = await forms.run(partial(form_behind_thoughts, asked.text_form, thoughts, pieces))
    except InvalidGrammarError as error:
        raise _refusal(error, asked) from error
    return form, ()


def _refusal(error: InvalidGrammarError, asked: AskedTurn) -> InvalidFieldError:
    if isinstance(error, InvalidToolError):
        param = asked.field_of(error.index)
    elif asked.text_form is not None:
        param = asked.text_form.param
    else:
        param = "tools"
    return InvalidFieldError(f"{param}: {error}", param=param)


def _new_reader(
    use: ToolUse, tool_format: ToolFormat | None, thoughts: Thoughts | None
) -> TurnReader:
    reader: TurnReader = PlainReader()
    if tool_format is not None:
        names = [tool.name for _, tool in use.callable]
        reader = tool_format.new_reader(names, only_calls=use.mode is ToolMode.REQUIRED)
    if thoughts is None:
        return reader
    return ReasoningReader(reader, thoughts.marks, is_open=thoughts.are_open)
