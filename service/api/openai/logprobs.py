"""What OpenAI's endpoints say of tokens: their texts and bytes, and how likely they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.json_encoding import encode_numbers
from service.text.token_text import without_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.serving.answer_tokens import AnswerToken
    from service.serving.generation import CompleteChoice
    from service.text.token_text import TokenTexts

LEAST_LOGPROB = -9999.0  # OpenAI's own word for "hardly ever"


class PromptLogprob(AnswerModel):
    """How likely one token was at its place in a prompt."""

    logprob: float
    rank: int | None = Field(None, description="1 is the likeliest; absent beyond those asked for.")
    decoded_token: str


def finite_logprob(logprob: float) -> float:
    """Return a logprob as clients are told it: JSON has no infinity."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def encode_logprobs(logprobs: Sequence[float]) -> list[bytes]:
    """Return each logprob as JSON, as pydantic's models write it."""
    if min(logprobs) < LEAST_LOGPROB:
        logprobs = [finite_logprob(logprob) for logprob in logprobs]
    return encode_numbers(logprobs)[1:-1].split(b",")


def text_of(token: AnswerToken, texts: TokenTexts) -> str:
    """Return as much of a token's text as is part of the answer's."""
    if token.num_cut:
        return bytes_of(token, texts).decode(errors="replace")
    return texts.text(token.token_id)


def bytes_of(token: AnswerToken, texts: TokenTexts) -> bytes:
    """Return as much of a token's bytes as is part of the answer's text."""
    return without_end(texts.raw_bytes(token.token_id), token.num_cut)


def prompt_logprobs_of(
    choice: CompleteChoice, texts: TokenTexts, num_top: int
) -> list[dict[str, PromptLogprob] | None]:
    """Tell how likely a prompt's tokens were: of each, by id, itself and the likeliest ones."""
    ids = choice.prompt.token_ids[1:]
    reported: list[dict[str, PromptLogprob] | None] = [None]
    for token_id, found in zip(ids, choice.prompt_logprobs, strict=True):
        ranks = {top_id: rank for rank, (top_id, _) in enumerate(found.top[:num_top], start=1)}
        likely = {token_id: found.logprob, **dict(found.top[:num_top])}
        reported.append(
            {
                str(i): PromptLogprob(
                    logprob=finite_logprob(logprob), rank=ranks.get(i), decoded_token=texts.text(i)
                )
                for i, logprob in likely.items()
            }
        )
    return reported
