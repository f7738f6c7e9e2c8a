"""Words that must not be written, as the token sequences that an engine never lets come about.

A word is banned as it stands in running text: at the beginning, behind a space, and with none
before it. Other servers ban the tokens that a tokenizer makes of a word, and no others, so a model
that may not write "▁foo" writes "▁f" and "oo". Here every way to put a short word together from
tokens is banned, as far as `MAX_SPLITTINGS` goes. For words of up to `MAX_SPLIT_BYTES`, where it
suffices:

* no run of whole tokens is the word, nor a space and the word.

Not banned, on purpose: tokens that hold more than the word. Without "foo" a model may still write
"food", where that is one token. Nor is what the prompt began: only generated tokens are looked at.
Control pieces typed in a word are text; a word that is one control piece and nothing else bans the
piece, too. A word that begins with a space is banned behind a space only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from service.text.backend import fast_backend
from service.text.control_pieces import ControlPieces
from service.text.errors import InvalidBadWordError
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

MAX_WORDS = 256
MAX_WORD_BYTES = 256
MAX_SPLIT_BYTES = 24  # of words that are banned in every splitting
# Beside the tokenizer's own, over all words: the engine compares each with the answer's end before
# each token, at 0.04 µs.
MAX_SPLITTINGS = 512
MAX_SPLITTINGS_PER_TEXT = 128  # eight letters have no more, were every part of them one token
# A second token for the same bytes, as for one byte, counts as so many: no model has learnt it.
_SECOND_SPELLING = MAX_SPLIT_BYTES
# What may stand before a word and melts with it seldom; the first that doesn't is taken.
_ANCHORS = ("\n", "a", ".")
_CONTAINED_SIZES = (1, 2, 3)

Ids: TypeAlias = tuple[int, ...]
_Way: TypeAlias = tuple[int, Ids]  # what it costs, in tokens


def bad_word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[Ids, ...]:
    """Give the token sequences that must not come about, for `SamplingParams.bad_words`.

    Raises InvalidBadWordError for words that are empty, too long or too many, InvalidPromptError
    for a lone surrogate, TokenizerFailedError.
    """
    _check(words)
    reader = _WordReader(tokenizer)
    # Each word once, in the order that they came.
    texts = dict.fromkeys(text for word in words for text in _as_written(word))
    found: dict[Ids, None] = {}
    for text in texts:
        found.update(dict.fromkeys(reader.encodings(text)))
    for word in words:
        if (piece := reader.control_piece(word)) is not None:
            found[(piece,)] = None
    limit = min(MAX_SPLITTINGS_PER_TEXT, MAX_SPLITTINGS // max(1, len(texts)))
    for text in texts:
        # A space by itself needs no ban where the word behind it has one.
        least = 2 if text.startswith(" ") and text[1:] in texts else 1
        found.update(dict.fromkeys(reader.splittings(text.encode(), limit, least)))
    return tuple(ids for ids in found if not _contains_another(ids, found))


def _check(words: Sequence[str]) -> None:
    if len(words) > MAX_WORDS:
        raise InvalidBadWordError(f"bad_words holds {len(words)} words; give at most {MAX_WORDS}")
    for number, word in enumerate(words):
        if not word:
            raise InvalidBadWordError(f"bad_words[{number}] is empty; leave it out")
        num_bytes = len(word.encode(errors="surrogatepass"))
        if num_bytes > MAX_WORD_BYTES:
            raise InvalidBadWordError(
                f"bad_words[{number}] has {num_bytes} bytes; give at most {MAX_WORD_BYTES}"
            )


def _as_written(word: str) -> tuple[str, ...]:
    """Give a word as it stands in a text: with a space before it, and with none."""
    return (word,) if word.startswith(" ") else (word, f" {word}")


class _WordReader:
    """Finds what a tokenizer writes a word with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = fast_backend(tokenizer)
        self._pieces = ControlPieces.of(tokenizer)
        self._texts = TokenTexts(tokenizer)
        self._control_ids = self._pieces.ids

    def control_piece(self, word: str) -> int | None:
        """Give the id of the control piece that a word is, if it is one."""
        token_id = self._backend.token_to_id(word)
        return token_id if token_id in self._control_ids else None

    def encodings(self, text: str) -> Iterator[Ids]:
        """Give the tokenizer's own ids: of the beginning of a text, and behind something."""
        for ids in (self._pieces.encode_typed(text), self._encode_behind(text)):
            if ids and self._is_whole(ids, text):
                yield tuple(ids)

    def splittings(self, raw: bytes, limit: int, least: int) -> list[Ids]:
        """Give the ways to put bytes together from tokens, `limit` at most, fewest tokens first.

        least: how many bytes the first token has at least.
        """
        if len(raw) > MAX_SPLIT_BYTES:
            return []
        rests: list[list[_Way]] = [[(0, ())]]  # of the last bytes: of none, one, two, …
        for start in range(len(raw) - 1, -1, -1):
            shortest = start + (1 if start else least)
            ways = [
                (token_cost + cost, (token_id, *rest))
                for stop in range(shortest, len(raw) + 1)
                for token_cost, token_id in self._tokens_of(raw[start:stop])
                for cost, rest in rests[len(raw) - stop]
            ]
            rests.append(sorted(ways)[:limit])
        return [ids for _, ids in rests[-1]]

    def _tokens_of(self, raw: bytes) -> Iterator[tuple[int, int]]:
        """Give the tokens that stand for some bytes, each behind what it costs."""
        for rank, token_id in enumerate(self._texts.ids_of(raw)):
            if token_id not in self._control_ids:
                yield 1 + rank * _SECOND_SPELLING, token_id

    def _encode_behind(self, text: str) -> list[int]:
        """Give the ids of a text in the middle of another; none where it melts with all before."""
        for anchor in _ANCHORS:
            before = self._pieces.encode_typed(anchor)
            ids = self._pieces.encode_typed(anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return []

    def _is_whole(self, ids: list[int], text: str) -> bool:
        """Tell whether ids stand for a text: some vocabularies leave out what they have not.

        Not asked where a normaliser writes another text than was typed.
        """
        if self._backend.normalizer is not None:
            return True
        written = b"".join(map(self._texts.raw_bytes, ids))
        return written.lstrip(b" ") == text.encode().lstrip(b" ")


def _contains_another(ids: Ids, others: Collection[Ids]) -> bool:
    """Tell whether a sequence cannot come about already, as a part of it cannot."""
    return any(
        ids[start : start + size] in others
        for size in _CONTAINED_SIZES
        if size < len(ids)
        for start in range(len(ids) - size + 1)
    )
