"""What the middleware leaves in a request's scope for whoever answers it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service.observation.request_record import RequestRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack

    from starlette.requests import Request
    from starlette.types import Scope, Send

    from service.api.large_bodies import BodyShare

EVENT_STREAM = "text/event-stream"

_UNTIL_ANSWERED = "tetrad.until_answered"
_SEND = "tetrad.send"
_IGNORED = "tetrad.ignored"
_TRUNCATED = "tetrad.truncated"
_ERROR_FRAMES = "tetrad.error_frames"
_BODY_SHARE = "tetrad.body_share"
_RECORD = "tetrad.record"
_ARRIVAL = "tetrad.arrival"
_BACKGROUND = "tetrad.background"


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Return every value that came under a header's name, which is given in small letters."""
    return [value for header, value in scope["headers"] if header == name]


def run_in_background(scope: Scope, caller: str) -> None:
    """Mark a request of our own making as part of a batch; caller: the name of a key, or none."""
    scope[_BACKGROUND] = caller


def background_caller(scope: Scope) -> str | None:
    """Return on whose behalf a batch's request runs; None for any that came over the wire."""
    caller: str | None = scope.get(_BACKGROUND)
    return caller


def keep_arrival(scope: Scope) -> None:
    """Leave the moment at which a request came, where it does not begin at once."""
    scope[_ARRIVAL] = time.monotonic()


def arrival_of(scope: Scope) -> float | None:
    """Return when a request came that did not begin at once, by the monotonic clock."""
    arrival: float | None = scope.get(_ARRIVAL)
    return arrival


def keep_until_answered(scope: Scope, stack: ExitStack) -> None:
    """Leave what is left once the request's answer is complete."""
    scope[_UNTIL_ANSWERED] = stack


def until_answered(request: Request) -> ExitStack:
    """Return what is left once the request's answer is complete, however it ends."""
    stack: ExitStack = request.scope[_UNTIL_ANSWERED]
    return stack


def when_answered(scope: Scope, call: Callable[[], object]) -> None:
    """Call once the request's answer is complete; now where nobody knows when that is."""
    stack: ExitStack | None = scope.get(_UNTIL_ANSWERED)
    if stack is None:
        call()
    else:
        stack.callback(call)


def keep_send(scope: Scope, send: Send) -> None:
    """Leave the server's own way to send."""
    scope[_SEND] = send


def straight_send(scope: Scope) -> Send:
    """Return the way to send pieces of a body that has begun, past all that looks at its start.

    Five layers of middleware pass such pieces on as they are; past them a piece costs 5 µs less.
    """
    send: Send = scope[_SEND]
    return send


def keep_body_share(scope: Scope, share: BodyShare) -> None:
    """Leave what the request's body takes of all that may be held."""
    scope[_BODY_SHARE] = share


def release_body_share(scope: Scope) -> None:
    """Let others' bodies have what the request's takes: something else bounds it from now on."""
    share: BodyShare | None = scope.get(_BODY_SHARE)
    if share is not None:
        share.release()


def note_id(scope: Scope, request_id: str | None) -> None:
    """Let a request be known by the id that its body gives it, if it gives one."""
    if request_id is not None:
        scope["request_id"] = request_id


def note_ignored(scope: Scope, names: Sequence[str]) -> None:
    """Leave the names of what the request's body holds in vain, for a header."""
    scope[_IGNORED] = [*scope.get(_IGNORED, ()), *names]


def ignored(scope: Scope) -> Sequence[str]:
    """Return the names of what the request's body holds in vain."""
    names: Sequence[str] = scope.get(_IGNORED, ())
    return names


def note_truncated(scope: Scope, tokens: Mapping[str, int]) -> None:
    """Leave how many tokens of a prompt's parts had no room, for a header."""
    scope[_TRUNCATED] = tokens


def truncated(scope: Scope) -> Mapping[str, int]:
    """Return how many tokens of a prompt's parts had no room; those that had are not named."""
    tokens: Mapping[str, int] = scope.get(_TRUNCATED, {})
    return {part: num_cut for part, num_cut in tokens.items() if num_cut}


def keep_error_frames(scope: Scope, make: Callable[[Exception], bytes]) -> None:
    """Leave what tells of an error at the end of the stream that answers the request."""
    scope[_ERROR_FRAMES] = make


def error_frames_of(scope: Scope) -> Callable[[Exception], bytes] | None:
    """Return what tells of an error at the end of a stream; None where there is no stream."""
    make: Callable[[Exception], bytes] | None = scope.get(_ERROR_FRAMES)
    return make


def keep_record(scope: Scope, record: RequestRecord) -> None:
    """Leave what is remembered of the request."""
    scope[_RECORD] = record


def record_of(scope: Scope) -> RequestRecord:
    """Return what is remembered of the request; one that nobody reads where nobody observes."""
    record: RequestRecord = scope.setdefault(_RECORD, RequestRecord())
    return record


def caller_of(scope: Scope) -> str:
    """Return the name of the key that the request came with, or what stands for none."""
    return record_of(scope).caller
