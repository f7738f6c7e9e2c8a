"""Refuses requests that cannot be queued, before anything is done for them.

A crowd's refusals must cost little, or everybody waits for them: no route is looked for, no body is
read, and the bytes of an answer are made once for all that say the same. What comes of a body later
is skipped by the connection, which keeps none of it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from engine.errors import QueueFullError
from service.api.error_responses import error_form, error_response
from service.api.scope import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.api.context import ApiContext
    from service.api.endpoint import Endpoint, ErrorShape

_MAX_ANSWERS = 256  # that are kept; they differ in how many wait, and for how long


class RequireRoom:
    """Lets requests pass that take no room in the queue, or for which there may be some."""

    def __init__(self, app: ASGIApp, context: ApiContext, endpoints: Iterable[Endpoint]) -> None:
        self._app = app
        self._context = context
        self._shapes = {
            (endpoint.method, path): endpoint.errors
            for endpoint in endpoints
            if endpoint.takes_room
            for path in endpoint.paths
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise UnavailableError where no requests are taken; answer one that is refused."""
        shape = self._shapes.get((scope["method"], scope["path"]))
        if shape is not None:
            self._context.lifecycle.require_open()
            try:
                self._context.models.require_room()
            except QueueFullError as error:
                record_of(scope).failure = error_form(error).code
                start, body = _answer(str(error), math.ceil(error.retry_after_s), shape)
                await send(dict(start))
                await send(dict(body))
                return
        await self._app(scope, receive, send)


@lru_cache(maxsize=_MAX_ANSWERS)
def _answer(message: str, retry_after_s: int, shape: ErrorShape) -> tuple[Message, Message]:
    """Return what is sent of a refusal, as `error_response` has it."""
    response = error_response(QueueFullError(message, retry_after_s=retry_after_s), shape)
    return (
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        },
        {"type": "http.response.body", "body": response.body},
    )
