"""POST /v1/completions: text on from where a prompt ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import Response

from service.api.choices import plan_completion
from service.api.openapi import json_body
from service.api.request_bodies import read_request
from service.api.requests import CompletionRequest
from service.api.respond import acquire, answer
from service.api.response_body import COMPLETION

if TYPE_CHECKING:
    from service.api.context import ApiContext


def completions_router(context: ApiContext) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post(
        "/v1/completions", response_class=Response, openapi_extra=json_body(CompletionRequest)
    )
    async def create_completion(http_request: Request) -> Response:
        """Continue each prompt; at most 16 tokens where max_tokens is silent."""
        context.lifecycle.require_open()
        request = await read_request(
            http_request,
            CompletionRequest,
            limits=context.limits,
            max_body_bytes=context.max_body_bytes,
        )
        model = await acquire(http_request, request.model, context)
        choices = await plan_completion(request, model)
        return await answer(
            http_request, request, choices, form=COMPLETION, model=model, context=context
        )

    return router
