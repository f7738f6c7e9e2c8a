"""Special pieces where grammars are followed: none is ever the spelling of a text.

The library spells the text that a grammar demands by the tokenizer itself, which reads "<|im_end|>"
as the piece of that name. So it gets a tokenizer to which these pieces are known by secret names;
and a grammar that means the piece, and names it as the library has it, gets its id there instead.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING

from tokenizers import pre_tokenizers

from service.text.control_pieces import renamed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

# A piece's name in Lark, behind what may hold the same as text: strings, comments and patterns.
# What is begun and not ended is passed over to the line's end, so that nothing is read twice.
_NAMES = re.compile(r'"(?:\\.|[^"\\\n])*"?|//[^\n]*|/(?:\\.|[^/\\\n])*/?|(?P<name><[^<>\s]+>)')
_BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())  # as byte-level vocabularies write them


class GrammarPieces:
    """The special pieces of one tokenizer."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        # By their names.
        self.ids: Mapping[str, int] = {
            token.content: token_id
            for token_id, token in sorted(added.items())
            if token.special or _is_taken_for_special(token.content)
        }
        misread = {each.content for each in added.values() if _is_misread(each.content)}
        self._hidden = self.ids.keys() | misread

    def hidden_from_texts(self) -> str:
        """Return the tokenizer as JSON that finds none of the pieces in a text."""
        secret = secrets.token_hex(8)
        return renamed(self._backend, {name: f"<{secret}{name}>" for name in self._hidden})

    def by_id(self, grammar: str) -> str:
        """Return a grammar in which those pieces that it names stand by their ids."""
        if not grammar.startswith("{"):
            return _NAMES.sub(self._by_id, grammar)
        told = json.loads(grammar)
        is_changed = False
        for part in told.get("grammars", ()):
            written = part.get("lark_grammar")
            if written:
                part["lark_grammar"] = _NAMES.sub(self._by_id, written)
                is_changed |= part["lark_grammar"] != written
        return json.dumps(told) if is_changed else grammar

    def _by_id(self, found: re.Match[str]) -> str:
        token_id = self.ids.get(found["name"] or "")
        return found[0] if token_id is None else f"<[{token_id}]>"


def _is_taken_for_special(piece: str) -> bool:
    """Whether the library takes an added piece for a special one, whatever it is marked as."""
    return piece.startswith("<") and piece.endswith(">")


def _is_misread(piece: str) -> bool:
    """Whether the library takes an added piece's characters for bytes: DeepSeek Coder's "ö"."""
    return not piece.isascii() and _BYTES.issuperset(piece)
