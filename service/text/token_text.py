"""What single tokens look like to clients: their text, and the bytes that they stand for.

For what is told of tokens one by one, such as logprobs. A token may hold a part of a character
only, so bytes are exact where text is not; an answer's own text is `detokenizer`'s. Bytes are read
off the spelling of a piece, by the rule that the tokenizer's decoder goes by: a decode of one token
by itself would lose its leading space, and whatever is no whole character.
"""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from service.text.backend import fast_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_LATER_BYTES = bytes(range(0x80, 0xC0))  # of a character of several
_END_OF_IDS = 2**32  # the library takes no larger ones
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """The texts and bytes of one tokenizer's tokens; cheap to make, for any thread.

    Ids that no piece belongs to have neither: weights are often padded, and a model may pick one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UnsupportedTokenizerError."""
        self._pieces = pieces = _Pieces.of(tokenizer)
        # 0.1 µs a token that has been seen before, 2 to 4 µs for one that has not (2026-11).
        self._texts = pieces.texts
        self._bytes = pieces.raw_bytes

    def text(self, token_id: int) -> str:
        """Give a token's own text, as in the middle of a text: with its leading space.

        Special pieces are shown; what is no whole character is U+FFFD.
        """
        known = self._texts.get(token_id)
        if known is not None:
            return known
        text = self.raw_bytes(token_id).decode(errors="replace")
        if token_id in self._bytes:
            self._texts[token_id] = text
        return text

    def raw_bytes(self, token_id: int) -> bytes:
        """Give the bytes that a token adds to a text; of special pieces their content's."""
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        raw = self._pieces.read(token_id)
        if raw is None:  # not kept: there is no end to them
            return b""
        self._bytes[token_id] = raw
        return raw

    def is_special(self, token_id: int) -> bool:
        """Tell whether a token is marked special, and so no text unless it is asked for."""
        return token_id in self._pieces.special

    def ids_of(self, raw: bytes) -> tuple[int, ...]:
        """Give the tokens that stand for exactly these bytes; often none, seldom several.

        The piece that a tokenizer would take comes first, one for a single byte last.
        """
        found = dict.fromkeys(self._pieces.find(raw))
        return tuple(token_id for token_id in found if self.raw_bytes(token_id) == raw)


def without_end(raw: bytes, num_characters: int) -> bytes:
    """Leave out so many characters at the end, each with its first byte, if that is there."""
    for _ in range(num_characters):
        raw = raw.rstrip(_LATER_BYTES)[:-1]
    return raw


def num_begun(raw: bytes) -> int:
    """Count the characters that begin in some bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in raw)


class _Pieces:
    """How one tokenizer spells its pieces."""

    def __init__(self, backend: Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.texts: dict[int, str] = {}
        self.raw_bytes: dict[int, bytes] = {}
        self._backend = backend
        # Matched before anything is spelled, so what they hold is text: DeepSeek-Coder's "ü" is not
        # the letter for byte 0xFC.
        self._added = {token_id: token.content for token_id, token in added.items()}
        self.special = {token_id for token_id, token in added.items() if token.special}
        steps = _decoder_steps(backend)
        self._is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
        self._has_byte_pieces = any(step["type"] == "ByteFallback" for step in steps)
        # The letter that pieces write for a space; None where the rule is not known.
        self._space = None if self._is_byte_level else _space_letter(steps)

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> _Pieces:
        with _lock:
            if tokenizer not in _known:
                _known[tokenizer] = _Pieces(fast_backend(tokenizer))
            return _known[tokenizer]

    def read(self, token_id: int) -> bytes | None:
        """Give the bytes of a token; None if there is none of this id."""
        in_range = 0 <= token_id < _END_OF_IDS
        piece = self._backend.id_to_token(token_id) if in_range else None
        if piece is None:
            return None
        if token_id in self.special:
            return self._added[token_id].encode()
        if self._is_byte_level:
            return piece.encode() if token_id in self._added else _bytes_of_letters(piece)
        if self._has_byte_pieces and (found := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(found[1])
        if self._space is not None:
            return piece.replace(self._space, " ").encode()
        return self._decode_behind_text(token_id).encode()

    def find(self, raw: bytes) -> Iterator[int]:
        """Give the ids of the pieces that these bytes may be spelled as."""
        for piece in self._spellings(raw):
            token_id = self._backend.token_to_id(piece)
            if token_id is not None:
                yield token_id

    def _spellings(self, raw: bytes) -> Iterator[str]:
        if self._is_byte_level:
            yield "".join(BYTE_LETTERS[byte] for byte in raw)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            pass
        else:
            yield text if self._space is None else text.replace(" ", self._space)
            yield text
        if self._has_byte_pieces and len(raw) == 1:
            yield f"<0x{raw[0]:02X}>"

    def _decode_behind_text(self, token_id: int) -> str:
        """Decode a token behind another one; for decoders that this module does not know."""
        anchor = self._backend.encode("a", add_special_tokens=False).ids
        before = self._backend.decode(anchor, skip_special_tokens=False)
        return self._backend.decode([*anchor, token_id], skip_special_tokens=False)[len(before) :]


_known: WeakKeyDictionary[PreTrainedTokenizerBase, _Pieces] = WeakKeyDictionary()
_lock = threading.Lock()


def _decoder_steps(backend: Tokenizer) -> list[dict[str, Any]]:
    """Give what a tokenizer's decoder does, step by step, in the words of tokenizer.json."""
    if backend.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return steps


def _space_letter(steps: list[dict[str, Any]]) -> str | None:
    """Give the letter that pieces have in place of spaces; None where more is done to them.

    Steps behind `Fuse` see the whole text, and a single token in its middle is not theirs.
    """
    letter: str | None = None
    for step in steps:
        if step["type"] == "Metaspace":
            letter = step["replacement"]
        elif step["type"] == "Replace" and step["content"] == " " and "String" in step["pattern"]:
            letter = step["pattern"]["String"]
        elif step["type"] == "Fuse":
            break
        elif step["type"] != "ByteFallback":
            return None
    return letter


def _letters() -> list[str]:
    """Give the letter that byte-level vocabularies write for each byte.

    Printable ones of Latin-1 stand for themselves; the others, in order, for what follows U+00FF.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(free)) for byte in range(0x100)]


BYTE_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def _bytes_of_letters(piece: str) -> bytes:
    """Give the bytes of a byte-level piece; with other letters it is text, to its decoder too."""
    try:
        return bytes(_BYTES[letter] for letter in piece)
    except KeyError:
        return piece.encode()
