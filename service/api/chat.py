"""POST /v1/chat/completions: the next turn of a dialogue, through the variant's template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import Response

from service.api.choices import plan_chat
from service.api.openapi import json_body
from service.api.request_bodies import read_request
from service.api.requests import ChatRequest
from service.api.respond import acquire, answer
from service.api.response_body import CHAT

if TYPE_CHECKING:
    from service.api.context import ApiContext


def chat_router(context: ApiContext) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions", response_class=Response, openapi_extra=json_body(ChatRequest)
    )
    async def create_chat_completion(http_request: Request) -> Response:
        """Answer a dialogue; up to the end of the context where max_tokens is silent."""
        context.lifecycle.require_open()
        request = await read_request(
            http_request,
            ChatRequest,
            limits=context.limits,
            max_body_bytes=context.max_body_bytes,
        )
        model = await acquire(http_request, request.model, context)
        choices = await plan_chat(request, model)
        return await answer(http_request, request, choices, form=CHAT, model=model, context=context)

    return router
