"""Puts the grammar of a turn together: thoughts, text, and calls whose arguments follow schemas.

In llguidance's dialect of Lark. Rules of one format stand in its own module; here is what all of
them need: the arguments' grammars by name, free text, and thoughts before the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.tools.pieces import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.tools.pieces import Pieces

# A model that may call on and on would do so up to its last token.
MAX_CALLS = 32
TEXT = r"TEXT: /(.|\n)*/"
FORM = "@form"  # the text, where its form was asked for
# Names of a turn's own rules among a grammar's parts. Those of the second kind allow nothing but
# JSON with fixed texts around it, so that an engine can lead what has begun to its end.
TURN, ONLY_CALLS = "turn_of_calls", "only_calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What a format's rules are made for."""

    names: Sequence[str]  # of the tools that may be called
    pieces: Pieces
    is_required: bool  # the turn is nothing but calls
    is_parallel: bool  # it may hold several
    has_form: bool = False  # its text has a form of its own

    def more(self, rule: str) -> str:
        """Return as many further calls as may follow; nothing where none may."""
        return f"{rule}{{0,{MAX_CALLS - 1}}}" if self.is_parallel else ""

    def bodies(self, before_name: str, between: str, end: str) -> str:
        """Return the rule `body`: a call's texts around its name and its arguments."""
        bodies = (
            f"{quoted(before_name + json.dumps(name) + between)} {_reference(number)} {quoted(end)}"
            for number, name in enumerate(self.names)
        )
        return f"body: {' | '.join(bodies)}"

    def turn(self, mark: str, call: str) -> list[str]:
        """Return the rule `turn` of calls that a mark begins: before them, any text.

        call: what follows the first mark.
        """
        symbol = self.pieces.symbol(mark)
        if self.is_required:
            return [f"turn: {symbol} {call}"]
        if self.has_form:
            return [f"turn: {FORM} | {symbol} {call}"]
        if mark in self.pieces.ids:
            return [f"turn: TEXT | TEXT {symbol} {call}", TEXT]
        # Lazy: the first mark that is written begins a call.
        return [f"turn: TEXT | until_mark {call}", f"until_mark[lazy]: TEXT {symbol}", TEXT]


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The marks around a model's thoughts."""

    marks: tuple[str, str]
    are_open: bool  # the prompt ends with the first mark

    def rules(self, pieces: Pieces, turn: str, *, is_free: bool) -> list[str]:
        """Return the rule `start`: thoughts, then what `turn` names.

        is_free: the turn may begin with any text; marks of plain text are part of that then.
        """
        opening, closing = self.marks
        if closing in pieces.ids:
            thought = [f"thought: THOUGHT {pieces.symbol(closing)}", r"THOUGHT: /(.|\n)*/"]
        else:
            thought = [f"thought[lazy]: THOUGHT {quoted(closing)}", r"THOUGHT: /(.|\n)*/"]
        # What follows is text where any is free, and else no more than templates write.
        gap = "" if is_free else r"/\n{0,2}/"
        if self.are_open:
            return [f"start: thought {gap} {turn}", *thought]
        if is_free and opening not in pieces.ids:
            return [f"start: {turn}"]
        return [
            f"start: {turn} | {pieces.symbol(opening)} thought {gap} {turn}",
            *thought,
        ]


def turn_grammar(
    rules: Sequence[str],
    schemas: Sequence[dict[str, Any]],
    form: dict[str, Any] | None = None,
    *,
    name: str = TURN,
) -> str:
    """Return the grammar whose first rule is `start`.

    schemas: as `schema_part` returns them, of the tools in order; form: of the text; name: what
    kind of turn it is.
    """
    parts = [{"name": name, "lark_grammar": "\n".join(rules)}]
    parts += [{**part, "name": _reference(n)[1:]} for n, part in enumerate(schemas)]
    parts += [{**form, "name": FORM[1:]}] if form is not None else []
    return json.dumps({"grammars": parts})


def part_of(grammar: str) -> dict[str, Any]:
    """Return what a grammar consists of, to be made a part of another."""
    if not grammar.startswith("{"):
        return {"lark_grammar": grammar}
    (part,) = json.loads(grammar)["grammars"]
    return {name: value for name, value in part.items() if value is not None}


def _reference(number: int) -> str:
    return f"@arguments_{number}"
