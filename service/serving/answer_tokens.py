"""The tokens of one answer beside its text: each with its place, told when its text is.

What is told of tokens must show no more than the text does, streamed or not: a token waits as long
as its text is held back, and what a stop string cuts off is never told. Offsets count characters
from the beginning of the answer's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from engine.outputs import TokenLogprobs
from service.text.detokenizer import Detokenizer
from service.text.token_text import TokenTexts, num_begun, without_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerFast


class AnswerToken(msgspec.Struct, frozen=True, gc=False):
    """One token of an answer.

    One is made every token that is told: as a frozen dataclass it cost 0.6 µs more (2026-11).
    """

    token_id: int
    logprobs: TokenLogprobs | None  # None for a prompt's first token
    offset: int  # where its text begins; a character of several tokens begins with its first
    end: int  # of its text; its offset where the text is part of a later token's character
    num_cut: int = 0  # characters before its end that a stop string cut off


class AnswerTokens:
    """Hold tokens back until their text has been sent."""

    def __init__(self, start: int = 0) -> None:
        """start: where the first token's text begins."""
        self._start = start
        self._waiting: list[AnswerToken] = []

    def add(self, token_id: int, logprobs: TokenLogprobs | None, begin: int, end: int) -> None:
        """Take the next token; begin, end: characters of all tokens' text before and after it."""
        token = AnswerToken(token_id, logprobs, self._start + begin, self._start + end)
        self._waiting.append(token)

    def take(self, num_sent: int) -> list[AnswerToken]:
        """Return the tokens whose text is among the first `num_sent` characters of the answer."""
        count = 0
        for position, token in enumerate(self._waiting, start=1):
            if token.end > num_sent:
                break
            if token.end > token.offset:  # else it waits for what it is part of
                count = position
        return self._take(count)

    def take_rest(self) -> list[AnswerToken]:
        """Return what is left, once the answer has come to its end by itself."""
        return self._take(len(self._waiting))

    def take_until(self, num_sent: int, raw_bytes: Callable[[int], bytes]) -> list[AnswerToken]:
        """Return what begins within the first `num_sent` characters, where the rest was cut off.

        Of the last token, and of those that its first character began in, only what is left; none
        of which nothing is. raw_bytes: of a token by its id.
        """
        taken = self._take(sum(token.offset < num_sent for token in self._waiting))
        if not taken:
            return []
        last = taken.pop()
        group = [last]  # and the tokens without text before it
        while taken and taken[-1].end == taken[-1].offset:
            group.append(taken.pop())
        num_cut = max(last.end - num_sent, 0)
        left: list[AnswerToken] = []
        for token in group:
            raw = raw_bytes(token.token_id)
            if num_cut <= 0:
                left.append(token)
            elif without_end(raw, num_cut):
                left.append(replace(token, num_cut=num_cut))
            num_cut -= num_begun(raw)
        return taken + left[::-1]

    def _take(self, count: int) -> list[AnswerToken]:
        taken = self._waiting[:count]
        del self._waiting[:count]
        return taken


def prompt_tokens(
    tokenizer: PreTrainedTokenizerFast,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    text: str,
) -> list[AnswerToken]:
    """Place a prompt's tokens in its text; special ones take room only where the text shows them.

    logprobs: of every token but the first.
    """
    texts, detokenizer = TokenTexts(tokenizer), Detokenizer(tokenizer)
    tokens: list[AnswerToken] = []
    offset = 0
    for token_id, found in zip(token_ids, (None, *logprobs), strict=True):
        piece = detokenizer.push(token_id)
        if not piece and text.startswith(shown := texts.text(token_id), offset):
            piece = shown if texts.is_special(token_id) else ""
        end = offset + len(piece)
        tokens.append(AnswerToken(token_id, found, min(offset, len(text)), min(end, len(text))))
        offset = end
    return tokens
