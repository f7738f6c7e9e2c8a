"""GET /info: what is served, and within which bounds.

Only what is so here: what text-generation-inference tells of its own workers and batches has no
like, and is left out.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.endpoint import Endpoint, ErrorShape
from service.api.responses import ModelResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext

_COMMIT = re.compile("[0-9a-f]{40}")


class ServerInfo(AnswerModel):
    """What is served, and within which bounds."""

    model_id: str = Field(description="The served name.")
    model_sha: str | None = Field(description="The commit of its files, where it has one.")
    model_pipeline_tag: Literal["text-generation"]
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int | None = Field(description="null while the variant is not loaded.")
    max_total_tokens: int | None = Field(description="Of prompt and answer together.")
    max_client_batch_size: int = Field(description="Prompts of one completion request.")
    router: Literal["tetrad"]
    version: str = Field(description="Tetrad's own.")


def info_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""
    own_version = version("tetrad")

    async def get_info(http_request: Request) -> Response:
        """Tell what is served; of several variants the one that `?model=` names."""
        name = context.models.resolve(http_request.query_params.get("model") or None)
        _, model = context.models.find(name)
        most = None if model is None else model.engine.max_model_len
        revision = "" if model is None else model.identity.revision
        return ModelResponse(
            ServerInfo(
                model_id=name,
                model_sha=revision if _COMMIT.fullmatch(revision) else None,
                model_pipeline_tag="text-generation",
                max_best_of=context.limits.max_choices,
                max_stop_sequences=context.limits.max_stop_strings,
                max_input_tokens=most and most - 1,
                max_total_tokens=most,
                max_client_batch_size=context.limits.max_prompts,
                router="tetrad",
                version=own_version,
            )
        )

    return [
        Endpoint(
            method="GET",
            path="/info",
            tag="TGI",
            handler=get_info,
            query={"model": "A served name; needed only where several variants are served."},
            response=ServerInfo,
            statuses=(404,),
            errors=ErrorShape.TGI,
        )
    ]
