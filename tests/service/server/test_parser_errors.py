"""What the parser's errors become."""

from __future__ import annotations

import httptools

from service.server.parser_errors import explain


def test_a_fault_of_ours_is_an_answer_and_stands_in_the_log_alone():
    error = httptools.HttpParserCallbackError("callback")
    error.__context__ = ValueError("x" * 1000)
    refusal = explain(error, b"GET", "1.1")
    assert (refusal.status, refusal.code) == (400, "invalid_http")
    assert "x" not in refusal.message
    assert refusal.fault is not None
    assert refusal.fault.startswith("ValueError: xxx")
    assert len(refusal.fault) == 200
