"""What is said to whoever sends no HTTP, and how often the log says so."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from service.server.refusals import (
    LINES_A_WINDOW,
    WINDOW_S,
    RefusalLog,
    draining,
    malformed,
    too_slow,
)


@pytest.mark.parametrize(
    ("refusal", "line", "kind"),
    [
        (malformed("no"), "HTTP/1.1 400 Bad Request", "invalid_request_error"),
        (too_slow("no"), "HTTP/1.1 408 Request Timeout", "invalid_request_error"),
        (draining(), "HTTP/1.1 503 Service Unavailable", "service_unavailable"),
    ],
)
def test_a_refusal_is_an_error_in_openais_words_and_ends_the_connection(refusal, line, kind):
    dated = [(b"date", b"Sun, 29 Nov 2026 00:00:00 GMT")]
    head, _, body = refusal.response(dated).partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == line
    assert "connection: close" in headers
    assert "date: Sun, 29 Nov 2026 00:00:00 GMT" in headers
    assert f"content-length: {len(body)}" in headers
    assert ("retry-after: 5" in headers) == (refusal.status == 503)
    assert json.loads(body)["error"] == {
        "message": refusal.message,
        "type": kind,
        "param": None,
        "code": refusal.code,
    }


def test_a_refusal_has_an_id_that_its_answer_and_the_log_share():
    refusals = [malformed("no"), malformed("no")]
    assert refusals[0].request_id != refusals[1].request_id
    with capture_logs() as lines:
        RefusalLog().say(refusals[0], "127.0.0.1")
    assert lines[0]["request_id"] == refusals[0].request_id
    assert f"x-request-id: {refusals[0].request_id}".encode() in refusals[0].response()


def test_log_has_a_few_lines_in_a_while_and_counts_the_rest():
    now = 0.0
    log = RefusalLog(lambda: now)
    with capture_logs() as lines:
        for _ in range(1000):
            log.say(malformed("no"), "127.0.0.1")
        assert len(lines) == LINES_A_WINDOW
        now = WINDOW_S
        log.say(malformed("no"), "127.0.0.1")
        log.say(malformed("no"), "127.0.0.1")
    assert len(lines) == LINES_A_WINDOW + 2
    assert lines[-2]["left_out_before"] == 1000 - LINES_A_WINDOW
    assert "left_out_before" not in lines[-1]
    assert lines[0]["address"] == "127.0.0.1"
