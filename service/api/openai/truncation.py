"""Cuts prompts that a request allows to be cut: the field `truncate_prompt_tokens`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import InvalidFieldError
from service.serving.prompts import truncate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.openai.fields import OpenAIRequest
    from service.serving.served_model import ServedModel

DEFAULT_MAX_TOKENS = 16  # OpenAI's own of completions


def truncated(
    token_ids: Sequence[int], request: OpenAIRequest, model: ServedModel
) -> Sequence[int]:
    """Return the last ids of a prompt, as many as the request wants; all where it says nothing.

    -1 leaves room for max_tokens, or for 16 where the request is silent. Raises InvalidFieldError.
    """
    most = request.truncate_prompt_tokens
    if most is None:
        return token_ids
    if most == -1:
        asked = request.value_of("max_tokens")
        most = model.engine.max_model_len - (DEFAULT_MAX_TOKENS if asked is None else max(asked, 1))
    if most < 1:
        raise InvalidFieldError(
            "truncate_prompt_tokens: give at least 1, or -1 with a max_tokens that leaves room",
            param="truncate_prompt_tokens",
        )
    return truncate(token_ids, most, model.tokenizer)
