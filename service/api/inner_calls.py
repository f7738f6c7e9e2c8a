"""Runs requests of our own making through the application, as if they had come over the wire.

So a batch's request is checked, answered, counted and logged like any other. It differs in what its
scope says: on whose behalf it is, so that no key is asked for, and that it runs in the background.
One that was not run for the moment comes again, and is neither counted nor logged till it was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from service.api.scope import run_in_background
from service.batches.attempts import Answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

log = structlog.get_logger(__name__)

_FOR_LATER = (429, 503)
_ENDED = ("engine_dead", "template_interrupted")  # codes of a 503
_BROKEN = (
    b'{"error":{"message":"the server failed; this is a fault of its own","type":"server_error"}}'
)


class _Error(msgspec.Struct):
    code: object = None
    message: object = ""


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


class InnerCalls:
    """Posts bodies to one application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, url: str, body: bytes, owner: str, request_id: str) -> Answer:
        """Return what a request is answered; owner: the name of the key that it counts as."""
        exchange = _Exchange(body)
        try:
            await self._app(_scope(url, body, owner, request_id), exchange.receive, exchange.send)
        except Exception:
            log.exception("inner_call_failed", request_id=request_id)
        return exchange.answer(request_id)


class _Exchange:
    """One request and what it is answered; its client never leaves, but with its task."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 500
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.get_running_loop().create_future()  # until whoever waits is cancelled
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = dict(message["headers"])
        else:
            self._parts.append(message.get("body", b""))

    def answer(self, request_id: str) -> Answer:
        body = b"".join(self._parts)
        error = _error_of(body) if self._status in _FOR_LATER else _Error()
        ended = str(error.code) if error.code in _ENDED else None
        retry_after = self._headers.get(b"retry-after", b"")
        ignored = self._headers.get(b"x-ignored-params")
        return Answer(
            status=self._status,
            request_id=self._headers.get(b"x-request-id", request_id.encode()).decode("latin-1"),
            body=body or _BROKEN,
            is_for_later=self._status in _FOR_LATER and ended is None,
            ended=ended,
            reason=str(error.message),
            retry_after_s=max(1.0, float(retry_after)) if retry_after.isdigit() else 1.0,
            ignored=None if ignored is None else ignored.decode("latin-1"),
        )


def _error_of(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return _Error()


def _scope(url: str, body: bytes, owner: str, request_id: str) -> Scope:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
    }
    run_in_background(scope, owner)
    return scope
