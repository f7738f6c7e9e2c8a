"""Sends what an application answers as soon as it is shown the head of a request.

An application may have `answer_at_once(scope)`, which returns all that is to be sent, or None for a
request that is to be run. Where proxies are trusted, uvicorn stands before the application and says
who asks: then it is asked nothing before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvicorn._types import ASGISendEvent, HTTPScope

    from service.server.response_cycle import ResponseCycle

log = structlog.get_logger(__name__)

AnswerAtOnce: TypeAlias = "Callable[[HTTPScope], Sequence[ASGISendEvent] | None]"


class AnswersAtOnce:
    """One connection's; an answer waits until all that came with its request has been read.

    Only then it is known whether the request came whole, and so how the connection goes on.
    """

    def __init__(self, app: object) -> None:
        self._find: AnswerAtOnce = getattr(app, "answer_at_once", _never)
        self._is_held = False
        self._waiting: tuple[ResponseCycle, Sequence[ASGISendEvent]] | None = None

    def answer(self, cycle: ResponseCycle) -> bool:
        """Answer a request, or return False for one that is to be run."""
        try:
            messages = self._find(cycle.scope)
        except Exception:
            log.exception("not_answered_at_once", outcome="the request is run")
            return False
        if messages is None:
            return False
        self._waiting = cycle, messages
        if not self._is_held:
            self._send_waiting()
        return True

    def __enter__(self) -> None:
        """Let answers wait while requests are read."""
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        """Send the answer that waits."""
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send answers one after the other: the end of one may have the next request answered."""
        self._is_held = True
        try:
            while self._waiting is not None:
                (cycle, messages), self._waiting = self._waiting, None
                cycle.send_whole(messages)
        finally:
            self._is_held = False


def _never(_: HTTPScope) -> None:
    return None
