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


def num_kept(request: OpenAIRequest, model: ServedModel) -> int | None:
    """Return how many of a prompt's last ids the request wants; None where it says nothing.

    -1 leaves room for max_tokens, or for 16 where the request is silent. Raises InvalidFieldError.
    """
    most = request.truncate_prompt_tokens
    if most is None:
        return None
    if most == -1:
        asked = request.value_of("max_tokens")
        most = model.engine.max_model_len - (DEFAULT_MAX_TOKENS if asked is None else max(asked, 1))
    if most < 1:
        raise InvalidFieldError(
            "truncate_prompt_tokens: give at least 1, or -1 with a max_tokens that leaves room",
            param="truncate_prompt_tokens",
        )
    return most


def truncated(
    token_ids: Sequence[int], request: OpenAIRequest, model: ServedModel
) -> Sequence[int]:
    """Return as many of a prompt's last ids as the request wants. Raises InvalidFieldError."""
    most = num_kept(request, model)
    return token_ids if most is None else truncate(token_ids, most, model.tokenizer)
