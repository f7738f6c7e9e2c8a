"""Refuses requests that cannot be queued, before anything is done for them.

A crowd's refusals must cost little, or everybody waits for them. Where it can be, a request is
refused as soon as its head has been read (`service.api.at_the_head`): no task is made for it, and
it need not wait until all that came in the same turn of the event loop have been read. Else it is
refused before a route is looked for (`RequireRoom`): requests of pages, those that trusted proxies
pass on, and those that found room at the head and none when they began. Both say the same, in bytes
that are made once for all. What comes of a body later is skipped by the connection, which keeps
none of it.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from engine.errors import QueueFullError
from service.api.crowd import Crowd
from service.api.endpoint import ErrorShape
from service.api.error_responses import error_form, error_response
from service.api.headers import id_headers
from service.api.scope import background_caller, keep_arrival, record_of
from service.server.request_ids import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.api.context import ApiContext
    from service.api.endpoint import Endpoint

_MAX_ANSWERS = 256  # that are kept; they differ in how many wait, and for how long
_PASSED = "tetrad.passed"  # in the scope of a request that was let pass at its head


@dataclass(frozen=True, slots=True)
class FullAnswer:
    """What a request is told that cannot be queued."""

    code: str | None
    start: Message
    body: Message
    id_headers: tuple[bytes, ...]  # in which the request's id is told


class Room:
    """Whether requests may be queued; told for each as soon as its head is known."""

    def __init__(self, context: ApiContext, endpoints: Iterable[Endpoint]) -> None:
        self.crowd = Crowd()
        self._context = context
        # That were let pass at their heads and have not begun: most reserve their places soon.
        self._num_passed = 0
        # What all get that come in one turn of the event loop, once the queue is full in it.
        self._full: QueueFullError | None = None
        self._shapes = {
            (endpoint.method, path): endpoint.errors
            for endpoint in endpoints
            if endpoint.takes_room
            for path in endpoint.paths
        }

    def concerns(self, scope: Scope) -> bool:
        """Whether a request takes room in the queue."""
        return (scope["method"], scope["path"]) in self._shapes

    def let_pass(self, scope: Scope) -> None:
        """Count a request as one that may be about to reserve its place, until it begins."""
        scope[_PASSED] = True
        keep_arrival(scope)
        self._num_passed += 1

    async def begin(self, scope: Scope) -> None:
        """Let a request begin, which from now on counts by what it reserves.

        One that was let pass waits until those are refused that came with it and were not.
        """
        if scope.pop(_PASSED, False):
            try:
                await self.crowd.wait()
            finally:
                self._num_passed -= 1

    def find_refusal(self, scope: Scope) -> FullAnswer | None:
        """Return the refusal of a request that cannot be queued; None for any other.

        Those that were let pass and have not begun came after it. Raises UnavailableError where no
        requests are taken.
        """
        return self._refusal(scope, lambda: self._find_full(num_ahead=0))

    def find_refusal_at_head(self, scope: Scope) -> FullAnswer | None:
        """Return the same for a request behind all that were let pass, at less cost in a crowd."""
        return self._refusal(scope, self._find_full_at_head)

    def _refusal(
        self, scope: Scope, find_full: Callable[[], QueueFullError | None]
    ) -> FullAnswer | None:
        shape = self._shapes.get((scope["method"], scope["path"]))
        if shape is None:
            return None
        self._context.lifecycle.require_open()
        if background_caller(scope) is not None:
            return None  # it waits beside what is counted
        full = find_full()
        if full is None:
            return None
        retry_after_s = math.ceil(full.retry_after_s)
        if shape is ErrorShape.ANTHROPIC:  # its body tells the request's id
            return _make_answer(str(full), retry_after_s, shape, identify(scope))
        return _answer(str(full), retry_after_s, shape)

    def _find_full_at_head(self) -> QueueFullError | None:
        if self._full is None:
            self._full = self._find_full(self._num_passed)
            if self._full is not None:
                asyncio.get_running_loop().call_soon(self._look_again)
        return self._full

    def _find_full(self, num_ahead: int) -> QueueFullError | None:
        try:
            self._context.models.require_room(num_ahead)
        except QueueFullError as error:
            return error
        return None

    def _look_again(self) -> None:
        self._full = None


class RequireRoom:
    """Lets requests pass that take no room in the queue, or for which there may be some."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise UnavailableError where no requests are taken; answer one that is refused."""
        refusal = self._room.find_refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        record_of(scope).failure = refusal.code
        await send(dict(refusal.start))
        await send(dict(refusal.body))


@lru_cache(maxsize=_MAX_ANSWERS)
def _answer(message: str, retry_after_s: int, shape: ErrorShape) -> FullAnswer:
    """Return what is sent of a refusal; the same bytes for all that are told the same."""
    return _make_answer(message, retry_after_s, shape)


def _make_answer(
    message: str, retry_after_s: int, shape: ErrorShape, request_id: str | None = None
) -> FullAnswer:
    """Return what is sent of a refusal, as `error_response` has it."""
    error = QueueFullError(message, retry_after_s=retry_after_s)
    response = error_response(error, shape, request_id)
    return FullAnswer(
        error_form(error).code,
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        },
        {"type": "http.response.body", "body": response.body},
        id_headers(shape),
    )
