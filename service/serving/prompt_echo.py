"""The tokens of prompts that answers echo: placed once, however many answers a prompt has.

To place them takes 10 µs a token (2026-11), so it is done beside the event loop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from service.serving.answer_tokens import prompt_tokens
from service.serving.text_lanes import run_in_lane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from engine.outputs import TokenLogprobs
    from service.serving.answer_tokens import AnswerToken
    from service.serving.prompts import Prompt


class PromptEcho:
    """The tokens of one request's prompts, each with its place in the prompt's text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        # By the prompt's id; the request's own list keeps it alive.
        self._tokens: dict[int, list[AnswerToken]] = {}
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def tokens_of(
        self, prompt: Prompt, logprobs: Sequence[TokenLogprobs]
    ) -> Sequence[AnswerToken]:
        """Return a prompt's tokens, with the logprobs of whichever of its choices comes first.

        logprobs: of every token but the first; the same for each choice, but for rounding.
        """
        async with self._locks[id(prompt)]:
            if id(prompt) not in self._tokens:
                place = partial(
                    prompt_tokens, self._tokenizer, prompt.token_ids, logprobs, prompt.text
                )
                self._tokens[id(prompt)] = await run_in_lane(len(prompt.token_ids), place)
        return self._tokens[id(prompt)]
