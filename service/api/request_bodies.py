"""Reads a request's body: bytes, at most so many, to a checked request model.

Parsing is `service.api.json_bodies`', on pydantic-core's JSON parser: it refuses lone surrogates,
NaN, other encodings than UTF-8 and deep nesting. What is refused is named, and
never echoed beyond a field's name. What has no effect is refused or named as well, by the policy of
the settings: `warn` names it in the answer's x-ignored-params.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from service.api.field_names import num_repeatable, safe_name, safe_path
from service.api.json_bodies import read_json
from service.api.large_bodies import BodyShare
from service.api.requests import ClosedModel, RequestModel, ignored_paths
from service.api.scope import keep_body_share, note_ignored, record_of, when_answered
from service.errors import (
    BodyTooLargeError,
    InvalidFieldError,
    InvalidJsonError,
    MissingFieldError,
    RequestError,
    UnknownFieldError,
    UnsupportedBodyError,
    UnsupportedFieldError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails
    from starlette.requests import Request
    from starlette.types import Scope

    from service.api.context import ApiContext
    from service.api.requests import RequestLimits

MAX_ERRORS = 10
MAX_ERROR_LENGTH = 200
MAX_NAMED = 32  # names in x-ignored-params
# Larger bodies are parsed beside the event loop, one at a time: the interpreter is the same, and
# with several the loop would wait for each of them before its own turn.
MAX_BYTES_AT_ONCE = 64 * 1024
_large_bodies = ThreadPoolExecutor(1, thread_name_prefix="large-body")
_TYPE_NAME = re.compile(r"str|int|float|bool|[a-z-]+\[.*\]")

AnyRequest = TypeVar("AnyRequest", bound=RequestModel)


async def read_request(
    http_request: Request, kind: type[AnyRequest], context: ApiContext
) -> AnyRequest:
    """Return the body as a request of this kind; raise a RequestError that says what is wrong."""
    check_body_type(http_request)
    share = BodyShare(context.bodies)
    with ExitStack() as until_read:
        until_read.callback(share.release)
        request = await _read_within(share, http_request, kind, context)
        keep_body_share(http_request.scope, share)
        when_answered(http_request.scope, until_read.pop_all().close)
    return request


async def _read_within(
    share: BodyShare, http_request: Request, kind: type[AnyRequest], context: ApiContext
) -> AnyRequest:
    """Read and parse a body; share: what a large one takes of all that may be held."""
    pieces = await _read_pieces(http_request, context.max_body_bytes, share)
    record_of(http_request.scope).note_body()
    if sum(map(len, pieces)) > MAX_BYTES_AT_ONCE:
        when_answered(http_request.scope, context.memory.note)
        loop = asyncio.get_running_loop()
        request, ignored = await loop.run_in_executor(
            _large_bodies, _parse_and_look, pieces, kind, context.limits
        )
    else:
        request, ignored = _parse_and_look(pieces, kind, context.limits)
    report_ignored(http_request.scope, ignored, context.limits)
    return request


def _parse_and_look(
    pieces: list[bytes], kind: type[AnyRequest], limits: RequestLimits
) -> tuple[AnyRequest, list[str]]:
    """Parse a body, and let go of its pieces; also name what has no effect."""
    body = b"".join(pieces)  # of 4 MB in new memory some 10 ms
    pieces.clear()
    request = parse_request(body, kind, limits)
    return request, ignored_paths(request)


def report_ignored(scope: Scope, names: Sequence[str], limits: RequestLimits) -> None:
    """Deal with what has no effect by the policy: name it in the answer, or raise, or neither.

    Raises UnknownFieldError.
    """
    if not names or limits.unknown_fields == "ignore":
        return
    if limits.unknown_fields == "strict":
        raise _no_effect(names)
    more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    note_ignored(scope, [safe_name(name) for name in names[:MAX_NAMED]] + more)


def check_body_type(request: Request) -> None:
    """Refuse what is not plain JSON. Nothing is ever decompressed: a few KB may hold gigabytes."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedBodyError("the body is compressed; send it without Content-Encoding")
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedBodyError(
            "the body is not JSON; send it as 'Content-Type: application/json'"
        )
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters, re.IGNORECASE)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        raise UnsupportedBodyError("the body's charset is not UTF-8, which JSON is sent in")


async def _read_pieces(request: Request, max_bytes: int, share: BodyShare) -> list[bytes]:
    """Read a body of at most max_bytes; what comes beyond is never kept.

    Raises BodyTooLargeError, or QueueFullError where large bodies hold all that they may.
    """
    too_large = f"the body is larger than the allowed {max_bytes} bytes; send less"
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        if int(declared) > max_bytes:
            raise BodyTooLargeError(too_large)
        if int(declared) > MAX_BYTES_AT_ONCE:
            share.require_room(int(declared))  # refused now, not after most of it has come
    pieces: list[bytes] = []
    num_bytes = 0
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise BodyTooLargeError(too_large)
        if num_bytes > MAX_BYTES_AT_ONCE:
            share.grow_to(num_bytes)
        pieces.append(piece)
    return pieces


def parse_request(body: bytes, kind: type[AnyRequest], limits: RequestLimits) -> AnyRequest:
    """Parse and check a body. Raises a RequestError naming the fields that are wrong."""
    fields = read_json(body, limits.max_body_parts)
    if not isinstance(fields, dict):
        raise InvalidJsonError('the body is not a JSON object, as in {"model": …}')
    # Before pydantic, which would describe each of a million unknown names.
    unknown = [name for name in fields if name not in kind.model_fields]
    if unknown and (issubclass(kind, ClosedModel) or len(unknown) > MAX_NAMED):
        raise _no_effect(unknown)
    try:
        return kind.model_validate(fields, context=limits)
    except ValidationError as error:
        raise _describe(error.errors(include_url=False, include_input=False)) from None


def _no_effect(names: Sequence[str]) -> UnknownFieldError:
    first = [safe_name(name) for name in names[:MAX_ERRORS]]
    shown = num_repeatable(first, first[0])
    while len(message := _without_effect(first[:shown], len(names))) > MAX_ERROR_LENGTH:
        shown -= 1
    return UnknownFieldError(message, param=first[0])


def _without_effect(shown: Sequence[str], num_names: int) -> str:
    more = f" and {num_names - len(shown)} more" if num_names > len(shown) else ""
    return f"unknown, or without effect here: {', '.join(shown)}{more}; leave it out"


def _describe(details: Sequence[ErrorDetails]) -> RequestError:
    """Turn pydantic's findings into one error, of the kind of the first."""
    first = details[0]
    paths = [_path(detail["loc"]) for detail in details[:MAX_ERRORS]]
    param = paths[0] or None
    num_shown = num_repeatable(paths, param)
    messages = [_describe_one(details[number], paths[number]) for number in range(num_shown)]
    kinds: dict[str, type[RequestError]] = {
        "extra_forbidden": UnknownFieldError,
        "missing": MissingFieldError,
        "unsupported_field": UnsupportedFieldError,
    }
    return kinds.get(first["type"], InvalidFieldError)("; ".join(messages), param=param)


def _describe_one(detail: ErrorDetails, path: str) -> str:
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown; leave it out"[:MAX_ERROR_LENGTH]
    if detail["type"] == "missing":
        return f"{path}: required, and missing"[:MAX_ERROR_LENGTH]
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return (f"{path}: {message}" if path else message)[:MAX_ERROR_LENGTH]


def _path(loc: Iterable[str | int]) -> str:
    names = [str(part) for part in loc]
    # Where a value may be of several types, pydantic names the one that it tried, as a step.
    return safe_path(name for name in names if not _TYPE_NAME.fullmatch(name))
