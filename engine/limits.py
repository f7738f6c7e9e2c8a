"""What a request must respect before it may reach a tensor.

Checked on the host, because one id outside the vocabulary fails a whole device for everyone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InvalidTokenError, PromptTooLongError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """Bounds that follow from the model and the engine's sizes."""

    vocab_size: int
    max_model_len: int

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raise an `InvalidRequestError` where the request cannot be run as asked."""
        if not prompt_token_ids:
            raise InvalidTokenError("the prompt has no tokens; give at least one")
        if self._is_nothing_left(params):
            raise InvalidTokenError(
                "banned_token_ids leaves no token to pick; ban fewer of this model's"
                f" {self.vocab_size}"
            )
        if len(prompt_token_ids) >= self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_token_ids)} tokens; at most {self.max_model_len - 1}"
                f" leave room for an answer within this model's {self.max_model_len}; shorten the"
                " prompt"
            )
        self._check_token_ids("prompt", prompt_token_ids)
        self._check_token_ids("sampling settings", params.token_ids)

    def max_output_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """How many tokens may be generated after a prompt of this length."""
        return min(params.max_tokens, self.max_model_len - num_prompt_tokens)

    def _is_nothing_left(self, params: SamplingParams) -> bool:
        return len(params.banned_token_ids) >= self.vocab_size

    def _check_token_ids(self, where: str, token_ids: Collection[int]) -> None:
        if not token_ids:
            return
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < self.vocab_size:
                raise InvalidTokenError(
                    f"the {where} holds token id {token_id}; this model's ids are 0 to"
                    f" {self.vocab_size - 1}"
                )
