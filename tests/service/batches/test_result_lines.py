from __future__ import annotations

import json

from service.batches.records import BatchStatus
from service.batches.result_lines import answered_line, failed_line, unanswered_line


def test_an_answer_is_one_line_with_its_body_as_it_is():
    text = answered_line("my id", 200, "req-1", b'{"a":"\\u2028","b":1.0}')
    assert b"\n" not in text
    told = json.loads(text)
    assert told["custom_id"] == "my id"
    assert told["response"] == {
        "status_code": 200,
        "request_id": "req-1",
        "body": {"a": "\u2028", "b": 1.0},
    }
    assert told["error"] is None
    assert b'"b":1.0' in text


def test_what_had_no_effect_is_named_beside_the_body():
    told = json.loads(answered_line("a", 200, "r", b"{}", "made_up, other"))
    assert told["response"]["ignored_params"] == "made_up, other"


def test_ids_are_of_one_line_alone():
    ids = {json.loads(failed_line("a", "code", "why"))["id"] for _ in range(10)}
    assert len(ids) == 10


def test_a_request_that_was_not_run_says_why():
    for status, code in (
        (BatchStatus.EXPIRED, "batch_expired"),
        (BatchStatus.CANCELLED, "batch_cancelled"),
    ):
        told = json.loads(unanswered_line("a", status))
        assert (told["response"], told["error"]["code"]) == (None, code)
