"""How OpenAI's fields bound the filling of a gap, for the endpoints that do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import InvalidFieldError
from service.serving.infilling import AnswerRoom, Gap, plan_infill

if TYPE_CHECKING:
    from service.api.openai.fields import OpenAIRequest
    from service.serving.infilling import PlannedInfill
    from service.serving.served_model import ServedModel


async def plan_gap(
    prefix: str,
    suffix: str,
    request: OpenAIRequest,
    model: ServedModel,
    *,
    default_max_tokens: int,
    echo: str = "",
) -> PlannedInfill:
    """Plan a gap's prompt and answer. Raises a RequestError or TextError."""
    limit = model.engine.max_model_len
    asked: int | None = request.value_of("max_tokens")
    if asked is None:
        room = AnswerRoom.at_most(default_max_tokens, limit)
    else:
        room = AnswerRoom.exactly(asked, limit, length_param=request.given_name_of("max_tokens"))
    most_prompt = request.truncate_prompt_tokens
    if most_prompt == 0:
        raise InvalidFieldError(
            "truncate_prompt_tokens: give at least 1, or -1", param="truncate_prompt_tokens"
        )
    # -1 is what is done in any case: as many tokens as leave room for the answer.
    return await plan_infill(
        Gap(prefix=prefix, suffix=suffix),
        model,
        room,
        most_prompt=None if most_prompt == -1 else most_prompt,
        echo=echo,
    )
