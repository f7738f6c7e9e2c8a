"""What is refused before there is a request to answer: in which words, and what the log says of it.

The words are OpenAI's error, as everywhere, and the connection ends with them. What a request asks
for is `service.api.error_responses`'.
"""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog

from service.server.lifecycle import RETRY_AFTER_S
from service.server.request_ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger(__name__)

REFUSED = "tetrad.refused"  # in a request's scope: the refusal that ended it before it came whole
LINES_A_WINDOW = 5
WINDOW_S = 10.0


class Refusal(Exception):  # noqa: N818 - no fault of this program: an answer
    """A request that cannot be taken; the message says what to change."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fault: str | None = None  # of this server, for the log alone
        self.is_behind_answer = False  # that had begun, so that this one is not sent
        # Told with the answer and in the log; the request's own where it has got one.
        self.request_id = new_request_id()

    def response(self, server_headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """Return the whole answer, as it goes over the wire.

        server_headers: those of every answer, such as the date.
        """
        kind = "service_unavailable" if self.status == 503 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        body = json.dumps({"error": error}, ensure_ascii=False, separators=(",", ":")).encode()
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            f"x-request-id: {self.request_id}",
        ]
        if self.status == 503:
            lines.append(f"retry-after: {RETRY_AFTER_S}")
        if self.status == 405:
            lines.append("allow: GET, HEAD, POST, OPTIONS")
        lines += [f"{name.decode()}: {value.decode()}" for name, value in server_headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def not_spoken() -> Refusal:
    """Refuse a version of HTTP; a new one each time, as what is raised keeps frames."""
    message = "this version of HTTP is not spoken here; use HTTP/1.1 (or 1.0)"
    return Refusal(505, "http_version", message)


def malformed(message: str) -> Refusal:
    """Refuse what is not HTTP as it should be."""
    return Refusal(400, "invalid_http", message)


def too_large(message: str) -> Refusal:
    """Refuse headers, or what else is no body, for their size or number."""
    return Refusal(431, "headers_too_large", message)


def too_slow(message: str) -> Refusal:
    """Refuse a request that did not come in time."""
    return Refusal(408, "request_timeout", message)


def headers_too_slow(limit_s: float) -> Refusal:
    """Refuse a request whose headers did not come in time."""
    return too_slow(f"the request's headers did not come within {limit_s:g} s")


def draining() -> Refusal:
    """Refuse a request that has not come whole when the server is about to stop."""
    return Refusal(503, "not_ready", "the server is draining, and the request had not come whole")


class RefusalLog:
    """Says what was refused, a few lines in each while: whoever sends garbage sends much of it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._window_began = now()
        self._num_lines = 0
        self._num_left_out = 0

    def say(self, refusal: Refusal, address: str | None) -> None:
        """Log a refusal, unless there were many of late; the next line counts those left out."""
        now = self._now()
        if now - self._window_began >= WINDOW_S:
            self._window_began, self._num_lines = now, 0
        if self._num_lines >= LINES_A_WINDOW:
            self._num_left_out += 1
            return
        self._num_lines += 1
        left_out, self._num_left_out = self._num_left_out, 0
        more: dict[str, object] = {"left_out_before": left_out} if left_out else {}
        if refusal.fault is not None:
            more["fault"] = refusal.fault
        log.warning(
            "request_refused",
            status=refusal.status,
            code=refusal.code,
            reason=refusal.message,
            request_id=refusal.request_id,
            address=address,
            **more,
        )
