"""What a request asks of an answer's form, in one neutral shape, and the grammar that follows.

Each API fills one in from its own fields; which of them it was is kept, so that errors name it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llguidance import LLMatcher

from service.grammars.ascii_patterns import with_ascii_classes
from service.grammars.errors import InvalidGrammarError
from service.grammars.findings import Findings
from service.grammars.gbnf import is_gbnf
from service.grammars.gbnf_lark import lark_of_gbnf, quoted
from service.grammars.inline_schemas import with_schemas_followed
from service.grammars.json_schema import followed_schema, schema_grammar
from service.grammars.limits import (
    MAX_CHOICES,
    MAX_PATTERN_BYTES,
    MAX_SOURCE_BYTES,
)
from service.grammars.reading import require_readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.grammars.json_schema import JsonSchema

_refused_as_written = Findings()


class TextFormKind(enum.StrEnum):
    """In which way a form is given."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"  # Lark's, or llama.cpp's GBNF
    READY = "ready"  # as `grammar` returns it, put together and checked by this server


@dataclass(frozen=True, slots=True)
class TextForm:
    """The form of an answer's text, and the field of the request that asks for it."""

    kind: TextFormKind
    param: str
    schema: JsonSchema = True  # where it is one
    texts: Sequence[str] = ()  # the pattern or grammar, or the texts to choose between

    def grammar(self) -> str:
        """Return it as a grammar that `ConstraintFactory` reads, and that was read.

        Takes up to a third of a second, so it is no work for an event loop. Raises
        InvalidGrammarError, and QueueFullError where many wait whose forms take long to read.
        """
        if self.kind is TextFormKind.READY:
            return self.texts[0]
        if self.kind is TextFormKind.JSON_SCHEMA:
            grammar = schema_grammar(self.schema)
        elif self.kind is TextFormKind.REGEX:
            grammar = _regex(self.texts[0])
        elif self.kind is TextFormKind.CHOICE:
            grammar = _choice(self.texts)
        else:
            return _written(self.texts[0])
        require_readable(grammar)
        return grammar


def _regex(pattern: str) -> str:
    _require_short("the pattern", pattern, MAX_PATTERN_BYTES)
    return LLMatcher.grammar_from_regex(with_ascii_classes(pattern))


def _choice(texts: Sequence[str]) -> str:
    if len(texts) > MAX_CHOICES:
        raise InvalidGrammarError(f"has {len(texts)} texts; at most {MAX_CHOICES} are taken")
    _require_short("the choice", "".join(texts), MAX_SOURCE_BYTES)
    either = " | ".join(map(quoted, texts))
    # As one terminal, which many texts are no more work for than few.
    return LLMatcher.grammar_from_lark(f"start: C\nC: {either}")


def _written(grammar: str) -> str:
    """Return a grammar that was read.

    Rewriting one that is refused may take 0.5 s of this process, so that refusals are remembered.
    """
    _require_short("the grammar", grammar, MAX_SOURCE_BYTES)
    known = _refused_as_written.get(grammar)
    if known is not None:
        raise InvalidGrammarError(known.refusal)
    try:
        written = _as_lark(grammar)
        require_readable(written)
    except InvalidGrammarError as error:
        _refused_as_written.remember(grammar, str(error))
        raise
    return written


def _as_lark(grammar: str) -> str:
    # The library would take JSON for its own notation, whose schemas nobody has looked at.
    is_in_gbnf = None if grammar.lstrip().startswith("{") else is_gbnf(grammar)
    if is_in_gbnf is None:
        raise InvalidGrammarError(
            "the grammar defines nothing; give rules as GBNF has them (`root ::= …`), or Lark"
            " (`start: …`)"
        )
    lark = lark_of_gbnf(grammar) if is_in_gbnf else grammar
    return LLMatcher.grammar_from_lark(with_schemas_followed(lark, followed_schema))


def _require_short(what: str, text: str, most: int) -> None:
    size = len(text.encode())
    if size > most:
        raise InvalidGrammarError(f"{what} has {size} bytes; at most {most} are taken")
