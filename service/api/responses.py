"""Responses of JSON: plain values, or typed models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from service.api.json_encoding import encode_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel


class JsonResponse(Response):
    """JSON, compact, with characters as they are."""

    media_type = "application/json"

    def __init__(
        self, body: object, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(encode_json(body).encode(), status_code, headers)


class ModelResponse(Response):
    """What a typed model holds: the fields that were set."""

    media_type = "application/json"

    def __init__(
        self, body: BaseModel, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        content = body.model_dump_json(exclude_unset=True, by_alias=True)
        super().__init__(content.encode(), status_code, headers)


async def model_response(body: BaseModel, headers: Mapping[str, str]) -> ModelResponse:
    """Return a response that is written beside the event loop, as large ones should be."""
    return await asyncio.to_thread(ModelResponse, body, headers=headers)
