"""Token ids to text, one at a time, never half a character.

`tokenizers`' `DecodeStream` says when a character is complete. Two of its habits are kept away from
callers (tokenizers 0.23): it raises ("Invalid prefix encountered") when a run of byte pieces turns
out broken after part of it was given out, and while the text ends in U+FFFD it holds ids back
without limit, at quadratic cost. So each piece of text here starts a fresh stream behind a fixed
anchor, where nothing already given can change, and ids that can't become a character any more are
let go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tokenizers.decoders import DecodeStream

from service.text.backend import fast_backend

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
# A character takes at most four bytes and an id holds at least one, so an unfinished one has at
# most three ids; so many at the end of a prompt can matter to what follows.
MAX_UNFINISHED_IDS = 3


class Detokenizer:
    """Turn one sequence's token ids into text as they come.

    All pieces together equal the decoded ids as they stand behind the prompt: a leading space is
    kept wherever text precedes it. One exception, on purpose: the decoder of byte-fallback
    vocabularies makes U+FFFD of a whole run of byte pieces when any of it is broken, even of
    characters that were complete before the break; those have been sent by then, and stay.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        kept_token_ids: Collection[int] = (),
    ) -> None:
        """Begin behind a prompt; kept_token_ids: special ones that are text all the same."""
        self._backend = fast_backend(tokenizer)
        self._skip_special_tokens = skip_special_tokens
        self._literals = _literal_pieces(tokenizer)
        if kept_token_ids and skip_special_tokens:
            kept = {i: self._backend.decode([i], skip_special_tokens=False) for i in kept_token_ids}
            self._literals = {**self._literals, **kept}
        self._whole_pieces = _whole_pieces(tokenizer, skip_special_tokens)
        # Decoders treat the beginning of a text in their own way (SentencePiece's drops a space),
        # so ids that follow text are decoded behind some.
        self._anchor = self._backend.encode("a", add_special_tokens=False).ids
        self._context = self._anchor if self._has_text(prompt_token_ids) else []
        self._start_behind(prompt_token_ids[-MAX_UNFINISHED_IDS:])

    def push(self, token_id: int) -> str:
        """Take the next id; give the text that is complete now, possibly none."""
        if token_id in self._literals:
            return self.flush() + self._literals[token_id]
        is_fresh = self._context is self._anchor and not self._held and not self._seen
        if is_fresh and (known := self._whole_pieces.get(token_id)) is not None:
            return known
        self._held.append(token_id)
        if self._stream.step(self._backend, token_id) is not None:
            text = self.flush()
            if is_fresh:
                self._whole_pieces[token_id] = text
            return text
        return self._let_go() if len(self._held) > MAX_UNFINISHED_IDS else ""

    def flush(self) -> str:
        """Give all that is held back, once the sequence has ended.

        An unfinished character becomes U+FFFD, as in a full decode: the model did begin one.
        """
        text = _after(self._text(self._held), self._seen) if self._held else ""
        self._context = self._anchor
        self._restart([], seen="")
        return text

    def _start_behind(self, prompt_tail: Sequence[int]) -> None:
        """Hold the prompt's last ids if they are no text yet, or not a whole character."""
        held = self._with_text(prompt_tail)
        seen = self._text(held)
        if self._context and not seen.endswith(REPLACEMENT):
            held, seen = [], ""
        self._restart(held, seen=seen)

    def _restart(self, held: list[int], *, seen: str) -> None:
        """Begin a fresh stream that knows `held`, whose text begins with what was `seen` before."""
        self._held = held
        self._seen = seen
        self._stream = DecodeStream(self._context + held, self._skip_special_tokens)

    def _let_go(self) -> str:
        """Give the part of the held text that no further id can change."""
        held = self._with_text(self._held)
        if len(held) <= MAX_UNFINISHED_IDS:
            self._restart(held, seen=self._seen)
            return ""
        seen, whole = self._seen, self._text(held)
        for count in range(MAX_UNFINISHED_IDS, 0, -1):
            settled, rest = self._text(held[:-count]), held[-count:]
            # Broken bytes that belong together are fewer U+FFFD together than apart, so a cut that
            # leaves the text as it is parts nothing.
            if settled + self._text_behind_text(rest) == whole:
                self._context = self._anchor
                self._restart(rest, seen=seen[len(settled) :])
                return _after(settled, seen)
        rest = held[-MAX_UNFINISHED_IDS:]
        open_text = self._text_behind_text(rest)
        self._context = self._anchor
        if open_text.endswith(REPLACEMENT):
            # Every id ends one character and begins the next: only the last character is open.
            self._restart(rest, seen=open_text.removesuffix(REPLACEMENT))
            return _after(whole.removesuffix(REPLACEMENT), seen)
        # Byte pieces that would be whole, were the run not broken before them: all is settled.
        self._restart([], seen="")
        return _after(whole, seen)

    def _has_text(self, token_ids: Sequence[int]) -> bool:
        """Tell whether the ids decode to any text; only a prompt of nothing but BOS does not."""
        return bool(self._decode(token_ids[-32:]) or self._decode(token_ids))

    def _with_text(self, token_ids: Sequence[int]) -> list[int]:
        """Leave out ids without text: special ones, and those past the vocabulary."""
        return [token_id for token_id in token_ids if self._text_behind_text([token_id])]

    def _text(self, token_ids: list[int]) -> str:
        """Decode ids where they stand."""
        return self._text_behind_text(token_ids) if self._context else self._decode(token_ids)

    def _text_behind_text(self, token_ids: list[int]) -> str:
        return self._decode(self._anchor + token_ids)[len(self._decode(self._anchor)) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._backend.decode(token_ids, self._skip_special_tokens)


# What ids give that are whole characters by themselves, behind settled text: found once a tokenizer
# (and way of decoding), since decoding anew cost 10 µs a token, a quarter of what one may cost.
_known_pieces: WeakKeyDictionary[PreTrainedTokenizerBase, dict[bool, dict[int, str]]] = (
    WeakKeyDictionary()
)


def _whole_pieces(tokenizer: PreTrainedTokenizerBase, skip_special_tokens: bool) -> dict[int, str]:
    return _known_pieces.setdefault(tokenizer, {}).setdefault(skip_special_tokens, {})


# Read once per tokenizer: it takes 1.5 ms for Qwen2's 293 added pieces (2026-11).
_known_literals: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, str]] = WeakKeyDictionary()


def _literal_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Give the added pieces that the decoder would get wrong, by id.

    Byte-level decoders take the letters of an added piece for bytes: DeepSeek-Coder's "ü", an id of
    its own, becomes the broken byte 0xFC.
    """
    if tokenizer not in _known_literals:
        backend = fast_backend(tokenizer)
        _known_literals[tokenizer] = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
            if REPLACEMENT in backend.decode([token_id], skip_special_tokens=False)
            and REPLACEMENT not in token.content
        }
    return _known_literals[tokenizer]


def _after(text: str, seen: str) -> str:
    """Give what comes after the part seen before.

    Not simply cut off by length: U+FFFD at the end of a prompt are gone once an id completes them.
    """
    common = 0
    for character, seen_character in zip(text, seen, strict=False):
        if character != seen_character:
            break
        common += 1
    return text[common:]
