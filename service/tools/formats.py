"""In which way a model writes its calls; which one, its template shows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from service.tools.call_readers import (
    ARGS,
    CALL_ID,
    PYTHON_TAG,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_CALLS,
    HermesReader,
    Llama3Reader,
    MistralReader,
)
from service.tools.pieces import quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from service.tools.call_readers import CallReader
    from service.tools.turn_grammar import CallRules


class ToolFormat(Protocol):
    """How calls are written: what may be written, and how it is read."""

    @property
    def name(self) -> str:
        """Whose way it is."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What the reader must see, also where it is a special piece."""

    @property
    def is_generic(self) -> bool:
        """Whether the template knows nothing of it, so that the prompt must say how to call."""

    @property
    def takes_forms(self) -> bool:
        """Whether the text of a turn may have a form of its own, beside calls."""

    def new_reader(self, names: Collection[str], *, only_calls: bool = False) -> CallReader:
        """Return a reader of one turn.

        names: of the tools that may be called; only_calls: the turn is nothing but calls.
        """

    def rules(self, asked: CallRules) -> list[str]:
        """Return the rules of a grammar; the turn's is `turn`."""


@dataclass(frozen=True, slots=True)
class Hermes:
    """`<tool_call>` around JSON, as Hermes and Qwen write it; also the generic way."""

    name: str = "hermes"
    is_generic: bool = False
    takes_forms: bool = True
    marks: tuple[str, ...] = (TOOL_CALL, TOOL_CALL_END)

    def new_reader(self, names: Collection[str], *, only_calls: bool = False) -> HermesReader:
        """Return a reader of one turn."""
        return HermesReader(names, only_calls=only_calls)

    def rules(self, asked: CallRules) -> list[str]:
        """Return the rules of a grammar; the turn's is `turn`."""
        begin, end = map(asked.pieces.symbol, self.marks)
        return [
            *asked.turn(TOOL_CALL, f"call {asked.more('more')}"),
            rf'more: "\n" {begin} call',
            rf'call: "\n" body "\n" {end}',
            asked.bodies('{"name": ', ', "arguments": ', "}"),
        ]


@dataclass(frozen=True, slots=True)
class Llama3:
    """The whole answer is JSON, as Llama 3 writes it."""

    name: str = "llama3"
    is_generic: bool = False
    takes_forms: bool = False  # a text that is JSON and a call would begin alike
    marks: tuple[str, ...] = (PYTHON_TAG,)

    def new_reader(self, names: Collection[str], *, only_calls: bool = False) -> Llama3Reader:
        """Return a reader of one turn."""
        return Llama3Reader(names, only_calls=only_calls)

    def rules(self, asked: CallRules) -> list[str]:
        """Return the rules of a grammar; the turn's is `turn`."""
        rules = [
            'more: "; " body',
            asked.bodies('{"name": ', ', "parameters": ', "}"),
        ]
        tag = asked.pieces.symbol(PYTHON_TAG) if PYTHON_TAG in asked.pieces.ids else ""
        if asked.is_required:
            calls = f"{tag}? body" if tag else "body"
            return [f"turn: {calls} {asked.more('more')}", *rules]
        begin = f"(first | {tag} body)" if tag else "first"
        return [
            f"turn: TEXT | {begin} {asked.more('more')}",
            *_first_bodies(asked.names),
            f"TEXT: {_NO_CALL}",
            *rules,
        ]


def _first_bodies(names: Sequence[str]) -> list[str]:
    """Return the rule `first`: a call that a text might have been.

    Line breaks, as behind thoughts, are part of its beginning: apart they would be text's.
    """
    begin = [quoted(f'{{"name": {json.dumps(name)}, "parameters": ') for name in names]
    bodies = [f'FIRST_{n} @arguments_{n} "}}"' for n in range(len(names))]
    return [
        f"first: {' | '.join(bodies)}",
        *(rf"FIRST_{n}: /\n{{0,2}}/ {text}" for n, text in enumerate(begin)),
    ]


# Any text but one that begins like a call: other JSON is an answer.
_NOT_NAME = r'([^"]|"([^n]|n([^a]|a([^m]|m([^e]|e[^"])))))'
_NO_CALL = (
    r"/[ \t\r\n]*([^ \t\r\n{](.|\n)*)?/"
    rf" | /[ \t\r\n]*\{{{_NOT_NAME}(.|\n)*/"
)


@dataclass(frozen=True, slots=True)
class Mistral:
    """`[TOOL_CALLS]`, then a list; or, in newer ones, a name before each call's arguments."""

    names_first: bool = False
    name: str = "mistral"
    is_generic: bool = False
    takes_forms: bool = True
    marks: tuple[str, ...] = (TOOL_CALLS, ARGS, CALL_ID)

    def new_reader(self, names: Collection[str], *, only_calls: bool = False) -> MistralReader:
        """Return a reader of one turn."""
        return MistralReader(names, only_calls=only_calls)

    def rules(self, asked: CallRules) -> list[str]:
        """Return the rules of a grammar; the turn's is `turn`."""
        begin = asked.pieces.symbol(TOOL_CALLS)
        if self.names_first:
            args = asked.pieces.symbol(ARGS)
            bodies = [f"{quoted(name)} {args} @arguments_{n}" for n, name in enumerate(asked.names)]
            return [
                *asked.turn(TOOL_CALLS, f"body {asked.more('more')}"),
                f"more: {begin} body",
                f"body: {' | '.join(bodies)}",
            ]
        return [
            *asked.turn(TOOL_CALLS, f'" "? "[" body {asked.more("more")} "]"'),
            'more: ", " body',
            asked.bodies('{"name": ', ', "arguments": ', "}"),
        ]


HERMES, LLAMA3, MISTRAL = Hermes(), Llama3(), Mistral()
MISTRAL_BY_NAME = Mistral(names_first=True)
GENERIC = Hermes(name="generic", is_generic=True)

# Others that write `<tool_call>`, and something else than JSON in it.
_OTHER_TOOL_CALLS = ("<function=", "<arg_key>", "<parameter=")


def format_of(template: str, *, takes_tools: bool) -> ToolFormat:
    """Return how a model writes calls, by its template's source.

    A template that takes tools and writes calls in a way that is not known here would teach the
    model what nobody reads, so the generic way is taken then, too.
    """
    if not takes_tools:
        return GENERIC
    if TOOL_CALLS in template:
        return MISTRAL_BY_NAME if ARGS in template else MISTRAL
    if TOOL_CALL in template and not any(other in template for other in _OTHER_TOOL_CALLS):
        return HERMES
    if PYTHON_TAG in template or _LLAMA_3.search(template):
        return LLAMA3
    return GENERIC


_LLAMA_3 = re.compile(r"<\|start_header_id\|>[\s\S]*\"parameters\": ")
