"""Every request has one id, whoever asks for it first, and whether or not it comes whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from service.server.request_ids import brought_id, identify
from tests.service.fakes import wait_until
from tests.service.server.test_http_protocol import LIVE, completion, fronted

if TYPE_CHECKING:
    from tests.service.server.test_http_protocol import Fronted

POST = b"POST /v1/completions HTTP/1.1\r\n"
MINE = b"x-request-id: mine\r\nhost: localhost\r\n"
JSON = b"content-type: application/json\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


def refused_id(server: Fronted, sent: bytes, num_answers_before: int = 0) -> str:
    """Return the id of a refusal, which the log has to name, and no other."""
    connection = server.connect()
    with capture_logs() as lines:
        connection.send(sent)
        for _ in range(num_answers_before):
            assert connection.read() is not None
        answer = connection.read()
    assert answer is not None
    assert answer.status >= 400
    assert json.loads(answer.body)["error"]["code"]
    (of_answer,) = [value for name, value in answer.headers if name == "x-request-id"]
    assert [line["request_id"] for line in lines if line["event"] == "request_refused"] == [
        of_answer
    ]
    return of_answer


@pytest.mark.parametrize(
    ("sent", "num_answers_before"),
    [
        pytest.param(
            POST + MINE + JSON + CHUNKED + b"\r\nzz\r\n", 0, id="in the packet of its head"
        ),
        pytest.param(POST + MINE + b"transfer-encoding: gzip\r\n\r\n", 0, id="with its head"),
        pytest.param(POST + MINE + b"no header\r\n\r\n", 0, id="within its head"),
        pytest.param(
            LIVE + POST + MINE + JSON + CHUNKED + b"\r\nzz\r\n", 1, id="behind another request"
        ),
        pytest.param(
            completion(num_tokens=50) + POST + MINE + JSON + CHUNKED + b"\r\nzz\r\n",
            1,
            id="while another is answered",
        ),
        pytest.param(completion() + (POST + MINE + b"\r\n") * 65, 65, id="one too many that wait"),
    ],
)
def test_a_request_is_refused_by_the_id_that_it_brings(sent: bytes, num_answers_before: int):
    with fronted(0.001) as server:
        assert refused_id(server, sent, num_answers_before) == "mine"


def test_the_application_has_the_id_that_a_request_was_refused_by():
    with fronted() as server, capture_logs() as lines:
        connection = server.connect()
        connection.send(POST + b"host: localhost\r\n" + JSON + CHUNKED + b"\r\nzz\r\n")
        answer = connection.read()
        assert answer is not None
        wait_until(lambda: any(line["event"] == "client_gone" for line in lines))
        connection.close()
    of_answer = answer.header("x-request-id")
    ids = {line["event"]: line["request_id"] for line in lines if "request_id" in line}
    assert ids == {"request_refused": of_answer, "client_gone": of_answer}


def test_a_refusal_has_no_id_of_a_request_before_it():
    with fronted() as server:
        before = LIVE.replace(b"\r\n\r\n", b"\r\nx-request-id: mine\r\n\r\n")
        assert refused_id(server, before + b"\x00garbage\r\n\r\n", num_answers_before=1) != "mine"


@pytest.mark.parametrize("version", [b"1.2", b"2.0", b"0.9"])
def test_no_two_refusals_of_a_version_share_an_id(version: bytes):
    with fronted() as server:
        sent = b"GET / HTTP/" + version + b"\r\nhost: localhost\r\n\r\n"
        assert refused_id(server, sent) != refused_id(server, sent)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-request-id", b"")],
        [(b"x-request-id", b"a b")],
        [(b"x-request-id", b"a" * 129)],
        [(b"x-request-id", b"a"), (b"x-request-id", b"b")],
    ],
)
def test_what_is_no_sane_id_is_not_taken(headers: list[tuple[bytes, bytes]]):
    assert brought_id(headers) is None
    scope = {"headers": headers}
    assert len(identify(scope)) == 32
    assert identify(scope) == identify(scope, "other")


def test_an_id_is_the_one_that_a_request_brings_before_any_other():
    assert identify({"headers": [(b"x-request-id", b"a/b")]}, "other") == "a/b"
    assert identify({"headers": []}, "other") == "other"
