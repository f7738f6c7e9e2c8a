"""GET /v1/models and /v1/models/{id}: what is served, and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.api.endpoint import Endpoint
from service.api.openai.model_answers import (
    Model,
    ModelDetails,
    ModelList,
    describe,
    describe_details,
)
from service.api.responses import ModelResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext


def model_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""

    async def list_models(http_request: Request) -> Response:
        """List the variants, and whether they are loaded."""
        models, for_anthropic = context.models, _is_from_anthropics(http_request)
        data = [
            Model(**describe(*models.find(status.name), for_anthropic=for_anthropic))
            for status in models.statuses
        ]
        answer = ModelList(object="list", data=data)
        if for_anthropic:
            answer.has_more = False
            answer.first_id = data[0].id if data else None
            answer.last_id = data[-1].id if data else None
        if "client_version" in http_request.query_params:
            # Codex breaks off without the list. An entry of it would have to bring the instructions
            # that Codex sends, in place of its own; without one it uses those.
            answer.models = []
        return ModelResponse(answer)

    async def get_model(http_request: Request) -> Response:
        """Describe one variant; while it is loaded, with the full record of where it came from."""
        name = context.models.resolve(http_request.path_params["name"])
        status, model = context.models.find(name)
        shared = describe(status, model, for_anthropic=_is_from_anthropics(http_request))
        answer = ModelDetails(**shared, **describe_details(status, model))
        return ModelResponse(answer, headers=None if model is None else model.identity.headers)

    return [
        Endpoint(
            method="GET",
            path="/v1/models",
            tag="OpenAI",
            handler=list_models,
            query={"client_version": "Whatever it is, the answer has `models`, which Codex reads."},
            response=ModelList,
        ),
        # A path: names hold slashes, colons and at signs, percent-encoded or not.
        Endpoint(
            method="GET",
            path="/v1/models/{name:path}",
            tag="OpenAI",
            handler=get_model,
            response=ModelDetails,
        ),
    ]


def _is_from_anthropics(http_request: Request) -> bool:
    """Whether a client of Anthropic's asks, which needs fields of its own."""
    return "anthropic-version" in http_request.headers
