"""Answers what can be answered as soon as a request's head is known: that the queue is full.

All that a refusal passes through otherwise (a task, the middleware, the route) takes longer than
all the rest of it, and in a crowd every request waits for those before it. What is refused here is
counted and logged like any other, and told in the same words; where there is the least else to say
(a key that is wrong, a page of another origin, a server that drains), nothing is answered here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from service.api.endpoint import Access
from service.api.observing import begin_record
from service.api.scope import header_values
from service.errors import InvalidKeyError, RequestError, UnavailableError
from service.server.request_ids import identify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Scope

    from service.api.browser_guard import PageRule
    from service.api.key_rule import KeyRule
    from service.api.observing import LabelRule
    from service.api.room import Room
    from service.observation.observation import Observation
    from service.observation.request_record import RequestRecord

_NOTED_A_TURN = 50  # refusals, some 15 µs each


class AtTheHead:
    """Decides at the heads of requests."""

    def __init__(
        self,
        room: Room,
        key_rule: KeyRule,
        page_rule: PageRule | None,
        observation: Observation,
        label_of: LabelRule,
    ) -> None:
        """page_rule: which pages may ask; None where a key keeps them out."""
        self._ended: deque[RequestRecord] = deque()  # not counted yet
        self._room = room
        self._key_rule = key_rule
        self._page_rule = page_rule
        self._observation = observation
        self._label_of = label_of

    def answer(self, scope: Scope) -> Sequence[Message] | None:
        """Return the whole answer of a request that is refused; None for one to be run."""
        if not self._room.concerns(scope):
            return None
        try:  # before anything else: who may not ask takes nothing from those who may
            if self._page_rule is not None:
                self._page_rule.check(scope)
            caller = self._key_rule.caller_of(scope)
            refusal = self._room.find_refusal_at_head(scope)
        except (InvalidKeyError, RequestError, UnavailableError):
            return None  # told by the middleware whose rule it is
        if refusal is None:
            self._room.let_pass(scope)
            return None
        if header_values(scope, b"origin"):
            return None  # what a page is told has headers of its own
        self._room.crowd.note_refusal()
        record = begin_record(scope, self._label_of, Access.CALLER)
        record.caller, record.failure = caller, refusal.code
        record.request_id, record.status = identify(scope), refusal.start["status"]
        self._note_soon(record)
        told_id = record.request_id.encode()
        headers = [*refusal.start["headers"], *((name, told_id) for name in refusal.id_headers)]
        return {**refusal.start, "headers": headers}, refusal.body

    def _note_soon(self, record: RequestRecord) -> None:
        """Count a request and write its line once others need not wait for that."""
        record.ended = time.monotonic()
        self._ended.append(record)
        if len(self._ended) == 1:
            self._room.crowd.call(self._note_some)

    def _note_some(self) -> None:
        """Count some, and the rest in the next turns of the event loop: there may be thousands."""
        try:
            for _ in range(min(_NOTED_A_TURN, len(self._ended))):
                self._observation.note_end(self._ended.popleft(), is_logged=True)
        finally:
            if self._ended:
                asyncio.get_running_loop().call_soon(self._note_some)
