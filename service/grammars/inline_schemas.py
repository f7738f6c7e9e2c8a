"""JSON schemas within grammars in Lark's form: `%json {…}`.

They are made to end and checked as any other is; the library would take its own settings from them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from service.grammars.errors import InvalidGrammarError

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.grammars.json_schema import JsonSchema

# What may hold the word without meaning it, and what JSON follows. What does not end goes on to the
# end of the grammar, which the library refuses: to look again behind each quote would take minutes.
_PIECE = re.compile(
    r'"(?:\\[\s\S]|[^"\\])*(?:"|\\?\Z)'  # a text
    r"|/(?:\\[\s\S]|[^/\\])+(?:/|\\?\Z)"  # a pattern
    r"|(?:\#|//)[^\n]*"  # a comment
    r"|%(?P<word>json|llguidance|regex)"
)
_BLANKS = re.compile(r"[ \t\r\n]*")
_READER = json.JSONDecoder()


def with_schemas_followed(grammar: str, follow: Callable[[JsonSchema], JsonSchema]) -> str:
    """Return a grammar whose schemas are those that `follow` makes of them.

    Raises InvalidGrammarError where one is no JSON.
    """
    parts: list[str] = []
    begin = 0
    while piece := _PIECE.search(grammar, begin):
        parts.append(grammar[begin : piece.end()])
        begin = piece.end()
        if word := piece["word"]:
            value_at = _BLANKS.match(grammar, begin).end()  # type: ignore[union-attr]
            value, begin = _read(grammar, value_at, word)
            if word == "json":
                if not isinstance(value, dict | bool):
                    raise InvalidGrammarError(
                        f"line {_line(grammar, value_at)}: %json is followed by a JSON schema: an"
                        " object, true or false"
                    )
                parts.append(" " + json.dumps(follow(value)))
            else:
                parts.append(grammar[value_at:begin])
    return "".join([*parts, grammar[begin:]])


def _read(grammar: str, begin: int, word: str) -> tuple[object, int]:
    try:
        return _READER.raw_decode(grammar, begin)
    except (ValueError, RecursionError) as error:
        raise InvalidGrammarError(
            f"line {_line(grammar, begin)}: what follows %{word} is no JSON that can be read"
        ) from error


def _line(grammar: str, place: int) -> int:
    return grammar.count("\n", 0, place) + 1
