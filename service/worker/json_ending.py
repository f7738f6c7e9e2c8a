"""Short ends of JSON that has begun, for answers that would be cut off in its midst.

A weak model writes a number's digits, a text or a tree that names itself without end. A grammar
says what may come, not what leads to an end; so the end is looked for: closing marks first, then
the shortest values. What is found is tried on a copy of the grammar's state before anybody relies
on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llguidance import LLMatcher, LLTokenizer

    from engine.constraint import TokenMask

MAX_END_TOKENS = 192  # longer ends are not looked for: 1 to 3 ms
# What is tried, in this order; a token of several marks is better than several tokens.
_OUTSIDE = (
    *("}}}}", "}}}", "}}", "]}]}", "]}", "}]", "]]", "}", "]", ", ", ",", ": ", ":", "null", "n"),
    *("0", "1", "5", "true", "false", "t", "f", '""', '"', "[]", "{}", "[", "{", "-", " ", "."),
)
_INSIDE = (
    *('"}}}', '"}}', '"}]}', '"}]', '"]}', '"}', '"]', '": ', '":', '", ', '",', '"'),
    # What formats ask for: the end of a time or duration, the middle of an address, then the rest.
    *("Z", "@", ".", "D", "Y", "S", "0", "1", "5", "a", "A", "-", ":", "T", "/", "P"),
)


@dataclass(frozen=True, slots=True)
class JsonPlace:
    """Where in JSON a text has come to: within a string or outside of all."""

    is_inside: bool = False
    is_escaped: bool = False  # the next character belongs to an escape
    last: int | None = None  # the token before it

    def after(self, text: bytes, last: int | None = None) -> JsonPlace:
        """Return the place behind more text; last: its last token."""
        is_inside, is_escaped = self.is_inside, self.is_escaped
        for byte in text:
            if is_escaped:
                is_escaped = False
            elif byte == 0x5C and is_inside:
                is_escaped = True
            elif byte == 0x22:
                is_inside = not is_inside
        return JsonPlace(is_inside, is_escaped, last)


class JsonEnding:
    """Looks for ends in the tokens of one vocabulary."""

    def __init__(self, vocabulary: LLTokenizer) -> None:
        self._vocabulary = vocabulary
        ids = _ids_by_text(vocabulary, {*_INSIDE, *_OUTSIDE})
        self._inside = [ids[text] for text in _INSIDE if text in ids]
        self._outside = [ids[text] for text in _OUTSIDE if text in ids]

    def place_after(self, place: JsonPlace, token_ids: Sequence[int]) -> JsonPlace:
        """Return the place behind more tokens."""
        return place.after(self._vocabulary.decode_bytes(list(token_ids)), token_ids[-1])

    def next_tokens(self, matcher: LLMatcher, mask: TokenMask, place: JsonPlace) -> Sequence[int]:
        """Return the next tokens of an end: what must come, else one that leads there.

        Nothing where nothing may come. mask: the matcher's. In a string no token is chosen twice in
        a row, as a form of text may allow it for ever.
        """
        forced: list[int] = matcher.compute_ff_tokens()
        if forced:
            return forced
        chosen = self._chosen(mask, place)
        return () if chosen is None else (chosen,)

    def _chosen(self, mask: TokenMask, place: JsonPlace) -> int | None:
        preferred = self._inside if place.is_inside else self._outside
        again: int | None = None
        for token_id in preferred:
            if mask[token_id >> 3] >> (token_id & 7) & 1:
                if not place.is_inside or token_id != place.last:
                    return token_id
                again = token_id
        return next(_ids_in(mask), None) if again is None else again

    def count_tokens(self, matcher: LLMatcher, place: JsonPlace, most: int) -> int | None:
        """Count the tokens of the end that would be written from here; None beyond `most`."""
        tried = matcher.deep_copy()
        num_tokens = 0
        while not tried.is_accepting():
            token_ids = self.next_tokens(tried, tried.compute_bitmask(), place)
            num_tokens += len(token_ids)
            if not token_ids or tried.is_error() or num_tokens > most:
                return None
            if not tried.consume_tokens(list(token_ids)):
                return None
            place = self.place_after(place, token_ids)
        return num_tokens


def _ids_by_text(vocabulary: LLTokenizer, texts: set[str]) -> dict[str, int]:
    """Find the tokens that are these texts."""
    wanted = {text.encode(): text for text in texts}
    found: dict[str, int] = {}
    for token_id in range(vocabulary.vocab_size):
        if not vocabulary.is_special_token(token_id):
            text = wanted.get(vocabulary.decode_bytes([token_id]))
            if text is not None:
                found.setdefault(text, token_id)
    return found


def _ids_in(mask: TokenMask) -> Iterator[int]:
    return (
        place * 8 + bit
        for place, byte in enumerate(mask)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    )
