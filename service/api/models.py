"""GET /v1/models and /v1/models/{id}: what is served, and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import Response

from service.api.error_responses import JsonResponse
from service.api.planning import check_model_name

if TYPE_CHECKING:
    from service.api.context import ApiContext
    from service.served_model import ServedModel


def models_router(context: ApiContext) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/v1/models", response_class=Response)
    async def list_models() -> Response:
        """List the served models."""
        model = context.lifecycle.require_served()
        body = {"object": "list", "data": [_describe(model)]}
        return JsonResponse(body, headers=model.identity.headers)

    # A path: names hold slashes, colons and at signs, percent-encoded or not.
    @router.get("/v1/models/{name:path}", response_class=Response)
    async def get_model(name: str) -> Response:
        """Describe one served model, with the full record of where it came from."""
        model = context.lifecycle.require_served()
        check_model_name(name, model)
        body = {**_describe(model), "provenance": model.identity.record}
        return JsonResponse(body, headers=model.identity.headers)

    return router


def _describe(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tetrad",
        "max_model_len": model.engine.max_model_len,
    }
