"""Which form a turn must have: its thoughts, its text, and its calls, as one grammar."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from engine.errors import QueueFullError
from service.grammars.ascii_patterns import with_ascii_classes
from service.grammars.errors import InvalidGrammarError
from service.grammars.json_schema import ANY_OBJECT
from service.grammars.reading import RETRY_AFTER_S, require_readable
from service.grammars.wanted import TextForm, TextFormKind
from service.tools.argument_schemas import arguments_schema, is_object_schema
from service.tools.calls import ToolMode
from service.tools.turn_grammar import (
    FORM,
    ONLY_CALLS,
    TURN,
    CallRules,
    Thoughts,
    part_of,
    turn_grammar,
)

if TYPE_CHECKING:
    from service.grammars.json_schema import JsonSchema
    from service.tools.calls import Tool, ToolUse
    from service.tools.formats import ToolFormat
    from service.tools.pieces import Pieces

PARAM = "tools"  # what errors name
# For the tools of a request, one after another. Those of 128 that are new take 0.5 s, those that
# were read before nearly none; each that is made to take long takes 0.3 s, and others wait for it.
MAX_READING_S = 1.0


class InvalidToolError(InvalidGrammarError):
    """A tool's schema cannot be followed, and must be."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index  # of the tool


class ConflictingFormError(InvalidGrammarError):
    """Calls and a form of the text were asked for that cannot be followed together."""


@dataclass(frozen=True, slots=True)
class TurnForm:
    """The grammar of a turn."""

    text_form: TextForm
    # Places of tools whose arguments may be any object, as their schemas cannot be followed.
    unfollowed: tuple[int, ...] = ()


def form_of_calls(
    use: ToolUse,
    tool_format: ToolFormat,
    pieces: Pieces,
    thoughts: Thoughts | None,
    text_form: TextForm | None,
) -> TurnForm:
    """Return the form of a turn that may or must call tools.

    Where a call may come but need not, a tool that is not strict is not refused for a schema that
    cannot be followed, or that there is no time left to read: any arguments may come then. Raises
    InvalidGrammarError, and QueueFullError where schemas that must be followed take too long, or
    many wait. Takes up to some 2 s, so it is no work for an event loop.
    """
    deadline = monotonic() + MAX_READING_S
    is_required = use.mode is ToolMode.REQUIRED
    form = None if is_required or text_form is None else _part_of_form(text_form, tool_format)
    tools = use.callable
    schemas, unfollowed = _parts_of_tools(use, deadline)
    asked = CallRules(
        names=[tool.name for _, tool in tools],
        pieces=pieces,
        is_required=is_required,
        is_parallel=_is_parallel(use, tool_format),
        has_form=form is not None,
    )
    rules = [*_start(thoughts, pieces, asked), *tool_format.rules(asked)]
    name = ONLY_CALLS if is_required and thoughts is None else TURN
    try:
        grammar = checked(turn_grammar(rules, schemas, form, name=name))
    except InvalidGrammarError as error:
        if is_required or any(tool.is_strict for _, tool in tools):
            raise
        del error
        unfollowed = [number for number, _ in tools]
        grammar = checked(turn_grammar(rules, [_any_object()] * len(tools), form))
    return TurnForm(TextForm(TextFormKind.READY, PARAM, texts=(grammar,)), tuple(unfollowed))


def _parts_of_tools(use: ToolUse, deadline: float) -> tuple[list[dict[str, Any]], list[int]]:
    """Return what the arguments of each tool follow, and the places of those that any may come to.

    deadline: by the monotonic clock, to begin with a tool.
    """
    schemas: list[dict[str, Any]] = []
    unfollowed: list[int] = []
    for number, tool in use.callable:
        must_follow = use.mode is ToolMode.REQUIRED or tool.is_strict
        try:
            if monotonic() < deadline:
                schemas.append(_part_of_tool(tool))
                continue
            if must_follow:  # a slow machine may be why, and what was read is known next time
                raise QueueFullError(
                    "the tools' schemas take too long to read; ask again, or send fewer or smaller"
                    " ones",
                    retry_after_s=RETRY_AFTER_S,
                )
        except InvalidGrammarError as error:
            if must_follow:
                raise InvalidToolError(str(error), number) from error
        schemas.append(_any_object())
        unfollowed.append(number)
    return schemas, unfollowed


def form_behind_thoughts(text_form: TextForm, thoughts: Thoughts, pieces: Pieces) -> TextForm:
    """Return the form of a turn whose text has one, and that begins with thoughts.

    Raises InvalidGrammarError.
    """
    rules = [*thoughts.rules(pieces, "turn", is_free=False), f"turn: {FORM}"]
    grammar = checked(turn_grammar(rules, [], part_of(text_form.grammar())))
    return TextForm(TextFormKind.READY, text_form.param, texts=(grammar,))


def _is_parallel(use: ToolUse, tool_format: ToolFormat) -> bool:
    """Whether several calls may come.

    A model that was never trained to call does not know when it has called enough.
    """
    return not tool_format.is_generic if use.is_parallel is None else use.is_parallel


def _start(thoughts: Thoughts | None, pieces: Pieces, asked: CallRules) -> list[str]:
    if thoughts is None:
        return ["start: turn"]
    is_free = not (asked.is_required or asked.has_form)
    return thoughts.rules(pieces, "turn", is_free=is_free)


def _part_of_form(text_form: TextForm, tool_format: ToolFormat) -> dict[str, Any]:
    if text_form.kind is not TextFormKind.JSON_SCHEMA or not tool_format.takes_forms:
        raise ConflictingFormError(
            f"cannot be followed beside tools by this model; leave out {text_form.param} or tools,"
            ' or send tool_choice "none" or "required"'
        )
    return part_of(text_form.grammar())


def _part_of_tool(tool: Tool) -> dict[str, Any]:
    if tool.pattern is not None:
        return _part_of_pattern(tool.pattern)
    if tool.parameters and not is_object_schema(tool.parameters):
        raise InvalidGrammarError("the schema's `type` must be object: arguments have names")
    return _part_of_schema(json.dumps(arguments_schema(tool.parameters)))


def _part_of_pattern(pattern: str) -> dict[str, Any]:
    # By itself first: one that closes a group it has not opened would end the one around it.
    TextForm(TextFormKind.REGEX, PARAM, texts=(pattern,)).grammar()
    text = {"type": "string", "pattern": f"^(?:{with_ascii_classes(pattern)})$"}
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    return _part_of_schema(json.dumps(schema))


def _any_object() -> dict[str, Any]:
    return _part_of_schema(json.dumps(ANY_OBJECT))


@lru_cache(maxsize=256)  # agents send the same tools with every turn
def _part_of_schema(schema: str) -> dict[str, Any]:
    given: JsonSchema = json.loads(schema)
    return part_of(TextForm(TextFormKind.JSON_SCHEMA, PARAM, schema=given).grammar())


def checked(grammar: str) -> str:
    """Return a grammar that can be read. Raises InvalidGrammarError and QueueFullError."""
    try:
        require_readable(grammar)
    except InvalidGrammarError as error:
        raise InvalidGrammarError(f"all together cannot be followed: {error}") from error
    return grammar
