"""What every request passes through: its id, the last stop of errors, the key, the count.

Plain ASGI, decided by `scope["path"]` alone: a URL put together from headers can be made to lie.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect

from loaders.checkpoint.rust_panics import is_panic
from service.api.endpoint import Access
from service.api.error_responses import UNEXPECTED, error_form, error_response
from service.api.headers import id_headers
from service.api.scope import (
    error_frames_of,
    ignored,
    keep_until_answered,
    record_of,
    truncated,
)
from service.errors import ClientGoneError, CutOffError, StalledReaderError
from service.observation.request_story import CLIENT_GONE, CUT_OFF, STALLED
from service.server.request_ids import identify

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.api.access import AccessRule
    from service.api.error_shapes import ShapeRule
    from service.api.key_rule import KeyRule
    from service.server.lifecycle import Lifecycle

log = structlog.get_logger(__name__)


class RequestId:
    """Gives every response an x-request-id: the request's own, if it has a sane one."""

    def __init__(self, app: ASGIApp, shape_of: ShapeRule) -> None:
        """shape_of: in whose words a path answers, and so in which headers it tells the id."""
        self._app = app
        self._shape_of = shape_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its id back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identify(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                request_id = scope["request_id"].encode()
                own = [(name, request_id) for name in id_headers(self._shape_of(scope["path"]))]
                # An error says what is to be changed, and repeats little.
                if message["status"] < 400 and (names := ignored(scope)):
                    own.append((b"x-ignored-params", ", ".join(names).encode()))
                if cut := truncated(scope):
                    parts = ", ".join(f"{part}={num_cut}" for part, num_cut in cut.items())
                    own.append((b"x-truncated-prompt", parts.encode()))
                message["headers"] = [*message["headers"], *own]
            await send(message)

        await self._app(scope, receive, send_with_id)


class ErrorBoundary:
    """Tells the client whatever was raised: as a response, or at the end of a stream begun."""

    def __init__(self, app: ASGIApp, shape_of: ShapeRule) -> None:
        """shape_of: in whose words a path's errors are told, also those raised on the way to it."""
        self._app = app
        self._shape_of = shape_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; answer its error if it has one."""
        begun: list[Message] = []

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except BaseException as error:  # the HTTP fallback: nothing is raised past it
            failure = _failure(error)
            if failure is None:
                raise
            try:
                await self._answer(_innermost(failure), begun, scope, receive, send)
            finally:
                let_go_of_frames(error)

    async def _answer(
        self, error: Exception, begun: list[Message], scope: Scope, receive: Receive, send: Send
    ) -> None:
        record_of(scope).failure = _failure_word(error)
        if isinstance(error, ClientGoneError | ClientDisconnect | StalledReaderError):
            log.debug("client_gone", reason=str(error), request_id=scope.get("request_id"))
            return
        if error_form(error) is UNEXPECTED:
            log.error("request_failed", request_id=scope.get("request_id"), exc_info=error)
        if not begun:
            shape = self._shape_of(scope["path"])
            await error_response(error, shape, scope.get("request_id"))(scope, receive, send)
        elif (make_frames := error_frames_of(scope)) is not None:
            frames = make_frames(error)
            await send({"type": "http.response.body", "body": frames, "more_body": False})


def _failure(error: BaseException) -> Exception | None:
    """Return what a request failed of; None for what is to end it, or the process, as it does."""
    if is_panic(error):
        failure = RuntimeError("a library written in Rust broke down")
        failure.__cause__ = error
        return failure
    return error if isinstance(error, Exception) else None


def _failure_word(error: Exception) -> str:
    """Return what is counted of an error: its code, or how its request was kept from its end."""
    if isinstance(error, ClientGoneError | ClientDisconnect):
        return CLIENT_GONE
    if isinstance(error, StalledReaderError):
        return STALLED
    if isinstance(error, CutOffError):
        return CUT_OFF
    form = error_form(error)
    return form.code or form.type


def _innermost(error: Exception) -> Exception:
    """Return the first error of a group: the one that made its mates stop."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def let_go_of_frames(error: BaseException) -> None:
    """Forget where an error came from, and those behind it, once nobody asks any more.

    An error and its frames hold each other, and all that was read of the request: a body of
    440 000 numbers, say. Left to Python's garbage collector, several go in one look of 70 ms, in
    which nobody is answered (2026-11).
    """
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or one.__traceback__ is None:  # or seen: errors may hold each other
            continue
        one.__traceback__ = None
        waiting += (one.__cause__, one.__context__)
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()


class AuthMiddleware:
    """Lets a request pass if it has the key of where it goes."""

    def __init__(self, app: ASGIApp, rule: KeyRule) -> None:
        self._app = app
        self._rule = rule

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise InvalidKeyError for a request that may not pass."""
        record_of(scope).caller = self._rule.caller_of(scope)
        await self._app(scope, receive, send)


class OpenRequests:
    """Counts a request as open until its answer is complete; health does not count."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, access_of: AccessRule) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._access_of = access_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while it is counted."""
        if self._access_of(scope["path"]) is Access.OPEN:
            await self._app(scope, receive, send)
            return
        with self._lifecycle.request(), ExitStack() as stack:
            keep_until_answered(scope, stack)
            await self._app(scope, receive, send)
