"""The load of `versus`: prompts that no server has seen, and rates as a client sees them.

Prompts consist of whole words, each one token wherever it stands, so that a prompt has as many
tokens as text as it has as ids: some servers take text alone.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from benchmarks.http_client import StreamedAnswer, stream

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LIMIT_S = 900.0  # of one measurement
MODEL = "versus"
_WORD = re.compile(r" [a-z]+")


class LoadError(RuntimeError):
    """A server did not answer as it was asked to."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, in both of its forms."""

    token_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens, and how it wants to be asked."""

    host: str
    port: int
    model: str = MODEL
    takes_token_ids: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)  # that only this server knows


class Prompts:
    """Makes prompts of random words."""

    def __init__(self, tokenizer_file: Path, choose: random.Random) -> None:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._choose = choose
        self._words = words_of(tokenizer)

    def make(self, num_tokens: int) -> Prompt:
        """Return a prompt that was never returned before, for all that chance allows."""
        chosen = self._choose.choices(list(self._words.items()), k=num_tokens)
        return Prompt([token_id for _, token_id in chosen], "".join(word for word, _ in chosen))


def words_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the words that are one token each, with the space before them."""
    ids = range(tokenizer.get_vocab_size())
    words = {tokenizer.decode([token_id]): token_id for token_id in ids}
    return {
        word: token_id
        for word, token_id in words.items()
        if _WORD.fullmatch(word)
        and tokenizer.encode(word, add_special_tokens=False).ids == [token_id]
    }


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a server was."""

    per_s: float  # tokens
    are_apart: bool = False  # there was no moment at which all streams ran: see `rate`


def measure_streams(target: Target, prompts: Sequence[Prompt], num_tokens: int) -> Rate:
    """Return the tokens a second that streams get together while all of them run."""
    return rate(asyncio.run(_ask_all(target, prompts, num_tokens)))


def measure_prompt(target: Target, prompt: Prompt) -> float:
    """Return the prompt tokens a second until the first text.

    An event without text says nothing of the prompt: some servers open with one. Where the only
    token has no text, the end of the answer counts.
    """
    return len(prompt.token_ids) / asyncio.run(_seconds_to_first(target, prompt))


async def _seconds_to_first(target: Target, prompt: Prompt) -> float:
    began = asyncio.get_running_loop().time()
    (answer,) = await _ask_all(target, [prompt], 1)
    return (answer.text_times[0] if answer.text_times else answer.times[-1]) - began


async def _ask_all(
    target: Target, prompts: Sequence[Prompt], num_tokens: int
) -> list[StreamedAnswer]:
    asking = asyncio.gather(
        *(stream(target.host, target.port, body_of(target, one, num_tokens)) for one in prompts)
    )
    try:
        answers = await asyncio.wait_for(asking, LIMIT_S)
    except TimeoutError:
        raise LoadError(f"no whole answer within {LIMIT_S:.0f} s") from None
    except (OSError, EOFError) as error:
        raise LoadError(f"the connection failed: {error!r}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise LoadError(f"the answer has another form: {error!r}") from error
    for answer in answers:
        check(answer, num_tokens)
    return answers


def body_of(target: Target, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    """Return the request for a greedy answer of so many tokens."""
    return {
        "model": target.model,
        "prompt": prompt.token_ids if target.takes_token_ids else prompt.text,
        "max_tokens": num_tokens,
        "temperature": 0,
        **target.fields,
    }


def check(answer: StreamedAnswer, num_tokens: int) -> None:
    """Raise LoadError unless an answer is whole and as long as it was asked to be.

    A server that does not count its tokens must have sent an event for each.
    """
    if answer.status != 200 or answer.error is not None:
        raise LoadError(f"status {answer.status}: {(answer.error or 'no answer')[:300]}")
    found = answer.completion_tokens
    if found is None:
        found = answer.num_events
    if found != num_tokens:
        raise LoadError(f"{num_tokens} tokens were asked for, {found} came")
    if not answer.times:
        raise LoadError("an answer without events")


def rate(answers: Sequence[StreamedAnswer]) -> Rate:
    """Return the tokens a second in the time from the last first token to the first end.

    Servers put several tokens into one event where they have to; each event counts for its share of
    the answer. Where there is no moment at which all streams run (they are answered one after the
    other), the time from the first token to the last counts, with all tokens but the first, and
    the rate says that they were apart.
    """
    if not all(answer.text_times for answer in answers):
        raise LoadError("an answer without text")
    begin = max(answer.text_times[0] for answer in answers)
    end = min(answer.text_times[-1] for answer in answers)
    are_apart = end <= begin
    if are_apart:
        begin = min(answer.text_times[0] for answer in answers)
        end = max(answer.text_times[-1] for answer in answers)
    if end <= begin:
        raise LoadError("all tokens came at once")
    num_tokens = sum(_tokens_within(answer, begin, end) for answer in answers)
    return Rate(num_tokens / (end - begin), are_apart)


def _tokens_within(answer: StreamedAnswer, begin: float, end: float) -> float:
    num_tokens = answer.completion_tokens or answer.num_events
    weight = num_tokens / len(answer.text_times)
    return weight * sum(begin < time <= end for time in answer.text_times)
