"""Prompts as the engine takes them, and how much room the model's context leaves behind them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import ContextLengthError
from service.text.backend import fast_backend, leading_ids
from service.text.errors import TextTooLongError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class CutTokens:
    """How many tokens around a gap had no room; each was cut from the end farthest from it."""

    prefix: int = 0
    suffix: int = 0
    files: int = 0

    def __add__(self, other: CutTokens) -> CutTokens:
        return CutTokens(
            self.prefix + other.prefix, self.suffix + other.suffix, self.files + other.files
        )

    def __bool__(self) -> bool:
        return any((self.prefix, self.suffix, self.files))


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt, ready to run."""

    token_ids: Sequence[int]
    text: str = ""  # what an answer that echoes its prompt begins with
    cut: CutTokens = CutTokens()


def truncate(
    token_ids: Sequence[int], most: int, tokenizer: PreTrainedTokenizerFast
) -> Sequence[int]:
    """Keep the last `most` ids; what the tokenizer puts before every text (BOS) stays before it."""
    if len(token_ids) <= most:
        return token_ids
    leading = leading_ids(fast_backend(tokenizer))
    if leading and list(token_ids[: len(leading)]) == leading and most > len(leading):
        return [*leading, *token_ids[len(leading) - most :]]
    return token_ids[-most:]


def context_words(limit: int) -> str:
    """Begin the message on what does not fit: some clients know it by these words alone."""
    return f"This model's maximum context length is {limit} tokens"


@contextlib.contextmanager
def within_context(limit: int, prompt_param: str) -> Iterator[None]:
    """Tell of a text that is too long in the words of the context: raises ContextLengthError."""
    try:
        yield
    except TextTooLongError as error:
        raise ContextLengthError(
            f"{context_words(limit)}, answer included; {error.found}: shorten it",
            param=prompt_param,
        ) from None


def room_behind(
    num_prompt_tokens: int, asked: int | None, limit: int, *, prompt_param: str, length_param: str
) -> int:
    """Return how many tokens may follow a prompt within the model's context of `limit` tokens.

    asked: tokens that the request wants, None where it is silent. Raises ContextLengthError.
    """
    room = limit - num_prompt_tokens
    context = context_words(limit)
    if room < 1:
        raise ContextLengthError(
            f"{context}, answer included; the prompt has {num_prompt_tokens} tokens: shorten it",
            param=prompt_param,
        )
    if asked is not None and asked > room:
        raise ContextLengthError(
            f"{context}; the prompt has {num_prompt_tokens} tokens and {length_param} asks for"
            f" {asked} more: ask for at most {room}, or shorten the prompt",
            param=length_param,
        )
    return room
