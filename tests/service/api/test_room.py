"""Requests that cannot be queued get what any other error of theirs gets, and pass nothing."""

from __future__ import annotations

import http.client
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.transport.backlog import Backlog, QueueLimits
from service.api.application import endpoints_of
from service.observation.observation import Observation
from service.observation.request_log import RequestLog
from service.server.lifecycle import Lifecycle
from tests.engine.fake_engine import FakeEngine as ComputingEngine
from tests.service.fakes import (
    FakeEngine,
    FakeModels,
    api_context,
    gap_tokenizer,
    running_server,
    says,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.fakes import RunningServer

FULL = replace(ComputingEngine(max_num_seqs=1).statistics(), num_running=1, num_free_slots=0)
CHAT = "/v1/chat/completions"


@pytest.fixture
def observation() -> Observation:
    return Observation()


@pytest.fixture
def server(observation) -> Iterator[RunningServer]:
    tokenizer = gap_tokenizer()
    engine = FakeEngine(says(tokenizer, "hi"))
    engine.backlog = Backlog(QueueLimits(max_queued_seqs=4))
    engine.backlog.update(0, FULL)
    engine.backlog.reserve(4)
    with running_server(engine, tokenizer, key="right", observation=observation) as running:
        yield running


def ask(
    connection: http.client.HTTPConnection, path: str, key: str = "right"
) -> tuple[http.client.HTTPResponse, dict]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", path, b"x" * 300_000, headers)
    response = connection.getresponse()
    return response, json.loads(response.read())


@pytest.fixture
def connection(server) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    yield made
    made.close()


def test_each_is_refused_in_the_words_of_its_path_on_a_connection_that_stays(connection):
    words = "the queue is full: 4 sequences wait, at most 4 may; try again later"
    for _ in range(3):
        response, told = ask(connection, CHAT)
        assert response.status == 429
        assert response.headers["retry-after"] == "1"
        assert response.headers["x-request-id"]
        assert told["error"] == {
            "message": words,
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        response, told = ask(connection, "/generate")
        assert response.status == 429
        assert told == {"error": words, "error_type": "overloaded"}


def test_who_has_no_key_is_told_nothing_of_the_queue(connection):
    response, _ = ask(connection, CHAT, key="wrong")
    assert response.status == 401


def test_a_refusal_is_counted_once_and_has_its_line(connection, observation):
    lines = io.StringIO()
    observation.log = RequestLog(lambda line: print(line, file=lines), as_json=True, slow_s=10)
    ask(connection, CHAT)
    wait_until(lambda: bool(lines.getvalue()))
    (line,) = lines.getvalue().splitlines()
    told = json.loads(line)
    assert (told["status"], told["outcome"], told["endpoint"]) == (429, "queue_full", CHAT)
    assert told["caller"] == "default"
    assert observation.counts.requests == {(CHAT, "429", "default"): 1}
    assert observation.counts.rejections == {("queue_full", "default"): 1}


def test_a_server_that_drains_takes_none(server, connection):
    server.lifecycle.begin_draining()
    response, told = ask(connection, CHAT)
    assert response.status == 503
    assert told["error"]["code"] == "not_ready"


def test_what_takes_room_is_what_streams_or_makes_text():
    models = FakeModels(None)
    endpoints = endpoints_of(api_context(Lifecycle(models), models))
    taking = {endpoint.path for endpoint in endpoints if endpoint.takes_room}
    assert {endpoint.path for endpoint in endpoints if endpoint.chunk is not None} < taking
    assert taking == {
        "/v1/completions",
        CHAT,
        "/v1/responses",
        "/v1/fim/completions",
        "/v1/messages",
        "/infill",
        "/",
        "/generate",
        "/generate_stream",
    }
