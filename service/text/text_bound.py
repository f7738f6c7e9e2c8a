"""How long a text can be of which a model's context holds the tokens: known without encoding it.

A token stands for so many bytes at most, as its vocabulary tells; so a longer text has more tokens
than there are places, and need not be encoded to be refused. True only of tokenizers that leave
nothing out: what each of their parts may shrink is reckoned here, and where one may drop any amount
of text there is no bound, and nothing is refused.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from service.text.backend import fast_backend
from service.text.errors import TextTooLongError
from service.text.token_text import BYTE_LETTERS, TokenTexts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# How many times longer a text can be than what a normaliser makes of it, in bytes of UTF-8: over
# all of Unicode 3.5 for NFC, 4 for NFKC (a digit of mathematical bold), 3 for small letters.
_NORMALIZERS = {"NFC": 4, "NFD": 4, "NFKC": 4, "NFKD": 4, "Lowercase": 3}
_GROWING_NORMALIZERS = ("Prepend", "ByteLevel")
# What splits a text and keeps all of it; `Split` and `Punctuation` where they are told to.
_KEEPING_SPLITTERS = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength")
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class TextBound:
    """What a tokenizer's tokens hold at most."""

    token_bytes: int | None  # None: no bound
    ignores_space: bool = False  # around some special pieces; then it does not count
    unknown: bytes = b""  # those that its vocabulary does not hold and leaves out

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> TextBound:
        """Give that of a tokenizer, found when it is first asked for; from any thread."""
        with _lock:
            if tokenizer not in _known:
                _known[tokenizer] = find_bound(tokenizer)
            return _known[tokenizer]

    def least_tokens(self, text: str) -> int:
        """Say how many tokens a text has at least."""
        return 0 if self.token_bytes is None else -(-self._size(text) // self.token_bytes)

    def require_short(self, text: str, most_tokens: int) -> None:
        """Raise TextTooLongError for a text that surely has more tokens."""
        # One character has four bytes at most, and few texts are worth counting.
        if self.token_bytes is None or 4 * len(text) <= self.token_bytes * most_tokens:
            return
        num_bytes = self._size(text)
        if num_bytes > self.token_bytes * most_tokens:
            raise TextTooLongError(
                f"the text has {num_bytes} bytes, and {most_tokens} tokens of this model hold"
                f" {self.token_bytes * most_tokens} at most"
            )

    def _size(self, text: str) -> int:
        if not self.ignores_space and not self.unknown:
            return len(text.encode(errors="surrogatepass"))
        return sum(self._piece_size(text[at : at + _PIECE]) for at in range(0, len(text), _PIECE))

    def _piece_size(self, text: str) -> int:
        known = "".join(text.split()) if self.ignores_space else text
        return len(known.encode(errors="surrogatepass").translate(None, self.unknown))


def find_bound(tokenizer: PreTrainedTokenizerBase) -> TextBound:
    """Reckon what a tokenizer's tokens hold at most; takes some 0.1 s for 150 000 pieces."""
    backend = fast_backend(tokenizer)
    normalizers = _parts_of(backend.normalizer, "normalizers")
    shrinks = _shrinkage(normalizers)
    keeps_all = all(map(_keeps_all, _parts_of(backend.pre_tokenizer, "pretokenizers")))
    unknown = _unknown_bytes(backend)
    if shrinks is None or not keeps_all or unknown is None:
        return TextBound(None)
    if unknown and not all(step["type"] in _GROWING_NORMALIZERS for step in normalizers):
        return TextBound(None)  # which characters become such bytes is not known
    added = backend.get_added_tokens_decoder().values()
    return TextBound(
        token_bytes=shrinks * _longest_piece(tokenizer, backend),
        ignores_space=any(token.lstrip or token.rstrip for token in added),
        unknown=unknown,
    )


def _parts_of(component: Any, name: str) -> list[dict[str, Any]]:
    """Give the steps of a tokenizer's component, in the words of tokenizer.json."""
    if component is None:
        return []
    told: dict[str, Any] = json.loads(component.__getstate__())
    waiting, steps = [told], []
    while waiting:
        one = waiting.pop()
        if one.get("type") == "Sequence":
            waiting += one[name]
        else:
            steps.append(one)
    return steps


def _shrinkage(normalizers: list[dict[str, Any]]) -> int | None:
    """Say how many times longer a text can be than what comes out; None: any number of times."""
    shrinks = 1
    for step in normalizers:
        kind = step["type"]
        if kind in _NORMALIZERS:
            shrinks *= _NORMALIZERS[kind]
        elif kind == "Replace" and "String" in step["pattern"] and step["content"]:
            pattern, content = step["pattern"]["String"].encode(), step["content"].encode()
            shrinks *= max(1, -(-len(pattern) // len(content)))
        elif kind not in _GROWING_NORMALIZERS:
            return None
    return shrinks


def _keeps_all(splitter: dict[str, Any]) -> bool:
    if splitter["type"] in ("Split", "Punctuation"):
        return str(splitter["behavior"]) != "Removed"
    return splitter["type"] in _KEEPING_SPLITTERS


def _unknown_bytes(backend: Tokenizer) -> bytes | None:
    """Return the bytes that no piece stands for; None where others may go with them.

    Several vocabularies of bytes lack some that are rare, and leave them out of a text.
    """
    model: Any = backend.model
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if type(model).__name__ not in ("BPE", "Unigram"):
        return None
    if getattr(model, "byte_fallback", False):
        has_all = all(f"<0x{byte:02X}>" in vocabulary for byte in range(0x100))
        return b"" if has_all else None
    is_byte_level = any(
        step["type"] == "ByteLevel"
        for step in (
            *_parts_of(backend.normalizer, "normalizers"),
            *_parts_of(backend.pre_tokenizer, "pretokenizers"),
        )
    )
    if not is_byte_level:
        return None
    unknown = bytes(byte for byte, letter in enumerate(BYTE_LETTERS) if letter not in vocabulary)
    return unknown if not unknown or type(model).__name__ == "BPE" else None


def _longest_piece(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> int:
    """Count the bytes of the piece that stands for most."""
    texts = TokenTexts(tokenizer)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: len(item[0]), reverse=True)
    longest = 1
    for piece, token_id in pieces:
        if 4 * len(piece) <= longest:  # none of those that follow has more
            break
        longest = max(longest, min(len(texts.raw_bytes(token_id)), 4 * len(piece)))
    return longest


_known: WeakKeyDictionary[PreTrainedTokenizerBase, TextBound] = WeakKeyDictionary()
_lock = threading.Lock()
