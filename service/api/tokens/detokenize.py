"""POST /detokenize: token ids back to text, special pieces shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.endpoint import Endpoint
from service.api.request_bodies import read_request
from service.api.requests import Name, RequestModel
from service.api.respond import acquire
from service.api.responses import ModelResponse
from service.errors import InvalidFieldError
from service.serving.text_lanes import run_in_lane
from service.text.backend import decode_whole, fast_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from tokenizers import Tokenizer

    from service.api.context import ApiContext

_END_OF_IDS = 2**32  # the library takes no larger ones


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: Name = Field(
        None, description="A served name. Where one variant is served, silence means it."
    )
    # Fails at the first: a body may hold a million wrong ones, each of which would be described.
    tokens: list[int] = Field(
        description="Token ids, each of a piece that the tokenizer has.", fail_fast=True
    )


class DetokenizedText(AnswerModel):
    """The text of token ids, under the names of two servers."""

    prompt: str = Field(description="The text, as vLLM names it.")
    content: str = Field(description="The same, as llama.cpp names it.")


def detokenize_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def detokenize(http_request: Request) -> Response:
        """Turn token ids into text; special pieces show."""
        context.lifecycle.require_open()
        request = await read_request(http_request, DetokenizeRequest, context)
        model = await acquire(http_request, request.model, context)

        def write() -> Response:
            text = decode(fast_backend(model.tokenizer), request.tokens)
            answer = DetokenizedText(prompt=text, content=text)
            return ModelResponse(answer, headers=model.identity.headers)

        # Beside the event loop: a body may hold two million ids.
        return await run_in_lane(len(request.tokens), write)

    return [
        Endpoint(
            method="POST",
            path="/detokenize",
            tag="Tokens",
            handler=detokenize,
            request=DetokenizeRequest,
            response=DetokenizedText,
        )
    ]


def decode(backend: Tokenizer, token_ids: Sequence[int]) -> str:
    """Decode token ids.

    Raises InvalidFieldError for one that no piece belongs to, TokenizerFailedError.
    """
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < _END_OF_IDS or backend.id_to_token(token_id) is None:
            raise InvalidFieldError(
                f"tokens[{position}]: this model's tokenizer has no piece of this id; its ids are"
                f" 0 to {_last_id(backend)}",
                param="tokens",
            )
    return decode_whole(backend, token_ids)


def _last_id(backend: Tokenizer) -> int:
    return max(backend.get_vocab(with_added_tokens=True).values())
