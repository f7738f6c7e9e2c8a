"""Short ends of JSON that has begun, for answers that would be cut off in its midst.

A weak model writes a number's digits, a text or a tree that names itself without end. A grammar
says what may come, not what leads to an end; so the end is looked for: closing marks first, then
the shortest values. What is found is tried on a copy of the grammar's state before anybody relies
on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llguidance import LLMatcher, LLTokenizer

    from engine.constraint import TokenMask

MAX_END_TOKENS = 192  # longer ends are not looked for: 1 to 3 ms
_MAX_NAME_BYTES = 64  # by which properties are told apart
_MAX_TRIED = 16  # tokens of one kind that are tried one by one; of more, some
_NUM_SAMPLES = 4
_MAX_ALONE, _MAX_SORTED = 64, 512  # words that are each a kind, or sorted by their letters
_MAX_BEGUN = 3  # tokens of an end that one token may have said
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
    last: int | None = None  # the token before it, where that was nothing but text
    string: bytes = field(default=b"", compare=False)  # the last that began, or its beginning
    name: bytes = field(default=b"", compare=False)  # of the property that came last

    def after(self, text: bytes, last: int | None = None) -> JsonPlace:
        """Return the place behind more text; last: its last token."""
        is_inside, is_escaped = self.is_inside, self.is_escaped
        string, name = self.string, self.name
        for byte in text:
            if is_inside and len(string) < _MAX_NAME_BYTES:
                string += bytes((byte,))
            if is_escaped:
                is_escaped = False
            elif byte == 0x5C and is_inside:
                is_escaped = True
            elif byte == 0x22:
                is_inside = not is_inside
                string = b"" if is_inside else string
            elif byte == 0x3A and not is_inside:
                name = string
        return JsonPlace(is_inside, is_escaped, last, string, name)


class JsonEnding:
    """Looks for ends in the tokens of one vocabulary."""

    def __init__(self, vocabulary: LLTokenizer) -> None:
        self._vocabulary = vocabulary
        self._texts = _texts_of(vocabulary)
        self._ids = {text: token_id for token_id, text in reversed(self._texts.items())}
        self._inside = _known(self._ids, _INSIDE)
        self._outside = _known(self._ids, _OUTSIDE)
        words = [token_id for token_id, text in self._texts.items() if _is_word(text)]
        self._words = _as_bits(words)
        self._letters = _as_bits(i for i in words if len(self._texts[i]) == 1)
        self._kinds: dict[tuple[int, bool, bool], bytes] = {}  # that were told, of few tokens

    def place_after(self, place: JsonPlace, token_ids: Sequence[int]) -> JsonPlace:
        """Return the place behind more tokens."""
        last = token_ids[-1] if self.is_word(token_ids[-1]) else None
        return place.after(self._vocabulary.decode_bytes(list(token_ids)), last)

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

    def find(
        self, matcher: LLMatcher, place: JsonPlace, most: int, before: Sequence[int] = ()
    ) -> list[int] | None:
        """Return the tokens of an end that may be written from here; None beyond `most`.

        before: an end from a little before, which is gone on with where that is possible.
        """
        end = self._rest_of(before, matcher)
        if end is not None and len(end) <= most:
            return end
        return self._find(matcher.deep_copy(), place, most, ())

    def count_tokens_behind(
        self, token_id: int, matcher: LLMatcher, place: JsonPlace, most: int, before: Sequence[int]
    ) -> int | None:
        """Count the tokens of an end behind a token that may come; None beyond `most`."""
        tried = matcher.deep_copy()
        if not tried.consume_token(token_id):
            return None
        found = self._find(tried, self.place_after(place, [token_id]), most, before)
        return None if found is None else len(found)

    def _find(
        self, tried: LLMatcher, place: JsonPlace, most: int, before: Sequence[int]
    ) -> list[int] | None:
        found: list[int] = []
        while not tried.is_accepting():
            rest = self._rest_of(before, tried)
            if rest is not None and len(found) + len(rest) <= most:
                return found + rest
            token_ids = self.next_tokens(tried, tried.compute_bitmask(), place)
            found += token_ids
            if not token_ids or tried.is_error() or len(found) > most:
                return None
            if not tried.consume_tokens(list(token_ids)):
                return None
            place = self.place_after(place, token_ids)
        return found

    def _rest_of(self, end: Sequence[int], matcher: LLMatcher) -> list[int] | None:
        """Return what is left of an end from a little before; None where it leads to no end."""
        for begun in range(min(len(end), _MAX_BEGUN)):
            rest = list(end[begun:])
            # An end token may come wherever the text may end.
            if matcher.validate_tokens([*rest, self._vocabulary.eos_token]) > len(rest):
                return rest
        return None

    def is_word(self, token_id: int) -> bool:
        """Whether a token in a string is nothing but part of it."""
        return bool(self._words >> token_id & 1)

    def is_free(self, mask: TokenMask, place: JsonPlace) -> bool:
        """Whether a place is in a string that may hold whatever it likes."""
        letters = self._letters
        return place.is_inside and int.from_bytes(mask, "little") & letters == letters

    def kinds(
        self, mask: TokenMask, place: JsonPlace, *, is_name: bool = False
    ) -> dict[bytes, TokenMask]:
        """Sort a mask's tokens by what they open, close and separate behind a place.

        is_name: it is in the name of a property.
        """
        allowed = int.from_bytes(mask, "little")
        kinds: dict[bytes, list[int]] = {}
        words = allowed & self._words if place.is_inside and not place.is_escaped else 0
        for token_id in _ids_in((allowed & ~words).to_bytes(len(mask), "little")):
            kinds.setdefault(self._kind(token_id, place), []).append(token_id)
        sorted_masks = {
            kind: _as_bits(token_ids).to_bytes(len(mask), "little")
            for kind, token_ids in kinds.items()
        }
        if words and not self._letters & ~words:  # all of them may come, so they are alike
            sorted_masks[b""] = words.to_bytes(len(mask), "little")
        elif words:
            sorted_masks.update(self._kinds_of_words(words, len(mask), is_name=is_name))
        return sorted_masks

    def _kinds_of_words(
        self, words: int, num_bytes: int, *, is_name: bool
    ) -> dict[bytes, TokenMask]:
        """Sort the words that may come where not all may: they may say which value it is."""
        num_words = words.bit_count()
        if num_words > (_MAX_SORTED if is_name else _MAX_ALONE):
            return {b"": words.to_bytes(num_bytes, "little")}
        kinds: dict[bytes, list[int]] = {}
        for token_id in _ids_in(words.to_bytes(num_bytes, "little")):
            text = self._texts[token_id]
            kinds.setdefault(text if num_words <= _MAX_ALONE else text[:1], []).append(token_id)
        return {
            b"word " + kind: _as_bits(token_ids).to_bytes(num_bytes, "little")
            for kind, token_ids in kinds.items()
        }

    def _kind(self, token_id: int, place: JsonPlace) -> bytes:
        key = token_id, place.is_inside, place.is_escaped
        kind = self._kinds.get(key)
        if kind is None:
            text = self._texts.get(token_id)
            kind = b"special %d" % token_id if text is None else _kind_of(text, place)
            self._kinds[key] = kind
        return kind

    def is_in_name(self, end: Sequence[int]) -> bool:
        """Whether an end begins in the string that names a property."""
        _, closing, behind = self._vocabulary.decode_bytes(list(end)).partition(b'"')
        return bool(closing) and behind.startswith(b":")

    def is_loss(self, refused: TokenMask, allowed: TokenMask) -> bool:
        """Whether one of the refused tokens cannot even be begun by an allowed one."""
        if int.from_bytes(refused, "little") & self._words:
            return True
        return not all(self._is_begun(token_id, allowed) for token_id in _ids_in(refused))

    def _is_begun(self, token_id: int, allowed: TokenMask) -> bool:
        text = self._texts.get(token_id, b"")
        begun = (self._ids.get(text[:end]) for end in range(1, len(text)))
        return any(i is not None and allowed[i >> 3] >> (i & 7) & 1 for i in begun)


def samples_of(mask: TokenMask, num_samples: int | None = None) -> tuple[list[int], bool]:
    """Return the tokens of one kind that are to be tried, and whether these are all.

    num_samples: None for all of a few and some of many.
    """
    bits = int.from_bytes(mask, "little")
    num_tokens = bits.bit_count()
    if num_samples is None:
        num_samples = num_tokens if num_tokens <= _MAX_TRIED else _NUM_SAMPLES
    if num_samples == num_tokens:
        return list(_ids_in(mask)), True
    lowest, highest = _lowest(bits), bits.bit_length() - 1
    steps = (lowest + (highest - lowest) * n // num_samples for n in range(num_samples))
    return sorted({step + _lowest(bits >> step) for step in steps}), False


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _texts_of(vocabulary: LLTokenizer) -> dict[int, bytes]:
    """Return what each token says, but for those that stand for more than their text."""
    return {
        token_id: vocabulary.decode_bytes([token_id])
        for token_id in range(vocabulary.vocab_size)
        if not vocabulary.is_special_token(token_id)
    }


def _known(ids: Mapping[bytes, int], texts: Sequence[str]) -> list[int]:
    return [ids[text.encode()] for text in texts if text.encode() in ids]


def _is_word(text: bytes) -> bool:
    """Whether a text leaves a string as it was: no mark, no escape, no half of a character."""
    if not text or b'"' in text or b"\\" in text or min(text) < 0x20:
        return False
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _kind_of(text: bytes, place: JsonPlace) -> bytes:
    """Write a text's marks, with one letter for what is said in strings, one for digits."""
    kind = bytearray()
    for byte in text:
        char = bytes((byte,))
        is_told = place.is_inside and not place.is_escaped and 0x20 <= byte < 0x80
        if is_told and char not in b'"\\':
            char = b"a"
        elif place.is_inside and byte >= 0x80:
            char = b"u"
        elif char.isdigit() and not place.is_inside:
            char = b"0"
        if not (char in (b"a", b"0") and kind.endswith(char)):
            kind += char
        place = place.after(bytes((byte,)))
    return bytes(kind)


def _as_bits(token_ids: Iterable[int]) -> int:
    token_ids = list(token_ids)
    bits = bytearray(max(token_ids, default=0) // 8 + 1)
    for token_id in token_ids:
        bits[token_id >> 3] |= 1 << (token_id & 7)
    return int.from_bytes(bits, "little")


def _ids_in(mask: TokenMask) -> Iterator[int]:
    return (
        place * 8 + bit
        for place, byte in enumerate(mask)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    )
