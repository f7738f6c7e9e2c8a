"""Watches every request from outside: its record begins and ends here, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeAlias

from starlette.routing import compile_path

from service.api.endpoint import Access
from service.api.scope import arrival_of, background_caller, keep_record
from service.observation.request_record import OTHER_ENDPOINT, RequestRecord
from service.observation.request_story import CLIENT_GONE, CUT_OFF, INTERNAL, STALLED, comes_again
from service.server.refusals import REFUSED
from service.server.response_cycle import NOT_READ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.api.access import AccessRule
    from service.api.endpoint import Endpoint
    from service.observation.observation import Observation

LabelRule: TypeAlias = "Callable[[str], str]"


def label_rule(endpoints: Iterable[Endpoint]) -> LabelRule:
    """Return what names the endpoint of a path: by its first path, as it is declared.

    All unknown paths have one name: there may be any number of them.
    """
    by_path: dict[str, str] = {}
    by_pattern = []
    for endpoint in endpoints:
        for path in endpoint.paths:
            if "{" in path:
                by_pattern.append((compile_path(path)[0], endpoint.path))
            else:
                by_path.setdefault(path, endpoint.path)

    def label_of(path: str) -> str:
        if (label := by_path.get(path)) is not None:
            return label
        for pattern, label in by_pattern:
            if pattern.match(path):
                return label
        return OTHER_ENDPOINT

    return label_of


class ObserveRequests:
    """Counts every request once, and has its line written; health and scrapes have none."""

    def __init__(
        self, app: ASGIApp, observation: Observation, label_of: LabelRule, access_of: AccessRule
    ) -> None:
        self._app = app
        self._observation = observation
        self._label_of = label_of
        self._access_of = access_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; see how it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._observation.lag.start()
        access = self._access_of(scope["path"])
        record = begin_record(scope, self._label_of, access)
        keep_record(scope, record)

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            began = time.monotonic()
            await send(message)
            record.send_wait_s += time.monotonic() - began

        try:
            await self._app(scope, receive, watched_send)
        except BaseException as error:  # seen only: whoever is outside deals with it
            is_cut_off = isinstance(error, asyncio.CancelledError)
            record.failure = record.failure or (CUT_OFF if is_cut_off else INTERNAL)
            raise
        finally:
            if (refusal := scope.get(REFUSED)) is not None:
                # No client left, as it was made to seem; and what has been sent since went nowhere.
                if record.status is None or not refusal.is_behind_answer:
                    record.status = refusal.status
                record.failure, record.is_refused_below = refusal.code, True
            if NOT_READ in scope and record.failure in (None, CLIENT_GONE):
                record.failure = STALLED
            record.request_id = scope["request_id"]
            self._observation.note_end(record, is_logged=_is_logged(record, access))


def begin_record(scope: Scope, label_of: LabelRule, access: Access) -> RequestRecord:
    """Return a request's record; access: who may ask at its path."""
    record = RequestRecord(label_of(scope["path"]), is_probe=access is Access.OPEN)
    record.is_of_batch = background_caller(scope) is not None
    client = scope.get("client")
    record.address = client[0] if client else None
    if (arrival := arrival_of(scope)) is not None:
        record.held_s, record.started = record.started - arrival, arrival
    return record


def _is_logged(record: RequestRecord, access: Access) -> bool:
    """Whether a request is worth a line: what asks every few seconds is not."""
    if comes_again(record):
        return False
    return not record.is_probe and not (access is Access.METRICS and record.status == 200)
