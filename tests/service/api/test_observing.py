"""Every request is counted once and has one line, whatever becomes of it. Over real sockets."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.errors import EngineDeadError, QueueFullError
from service.api.endpoint import Endpoint
from service.api.observing import label_rule
from service.observation.observation import Observation
from service.observation.request_log import RequestLog
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    RunningServer,
    running_server,
    says,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-1"
COMPLETIONS = "/v1/completions"


@dataclass
class Observed:
    """A server, and what was seen of its requests."""

    server: RunningServer
    engine: FakeEngine
    observation: Observation
    lines: list[str] = field(default_factory=list)

    def post(self, path: str = COMPLETIONS, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": "hi", **fields}
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(self.server.url + path, json=body, headers=headers, timeout=20)

    def leave(self, **fields: Any) -> None:
        """Ask for an answer, and hang up once it is being made."""
        body = json.dumps({"model": MODEL, "prompt": "hi", **fields}).encode()
        connection = socket.create_connection(("127.0.0.1", self.server.port))
        connection.sendall(
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: bool(self.engine.running))
        connection.close()

    def line(self) -> dict[str, Any]:
        """Wait for the one line that was written."""
        wait_until(lambda: bool(self.lines))
        (line,) = self.lines
        return json.loads(line)

    def requests(self) -> dict[tuple[str, str, str], int]:
        return dict(self.observation.counts.requests)

    def ends(self) -> dict[str, int]:
        return dict(self.observation.counts.of(MODEL).choice_ends)


@pytest.fixture
def observed() -> Iterator[Observed]:
    tokenizer, lines = ByteTokenizer(), []
    engine = FakeEngine(says(tokenizer, "hello"), max_model_len=4096)
    log = RequestLog(lines.append, as_json=True, slow_s=10)
    observation = Observation(log)
    with running_server(
        engine, tokenizer, key=KEY, observation=observation, max_body_bytes=1000
    ) as server:
        yield Observed(server, engine, observation, lines)


def test_an_answer_counts_with_its_tokens(observed):
    observed.engine.num_cached_tokens, observed.engine.queue_s = 2, 0.125
    assert observed.post().status_code == 200
    line = observed.line()
    assert (line["outcome"], line["status"], line["model"]) == ("stop", 200, MODEL)
    assert (line["endpoint"], line["caller"]) == (COMPLETIONS, "default")
    assert (line["prompt_tokens"], line["cached_tokens"], line["generated_tokens"]) == (3, 2, 6)
    assert line["queue_s"] == 0.125
    assert {"first_token_s", "tokens_per_s", "total_s", "request_id"} <= set(line)
    assert observed.requests() == {(COMPLETIONS, "200", "default"): 1}
    assert observed.ends() == {"stop": 1}
    counts = observed.observation.counts
    assert dict(counts.tokens) == {
        ("prompt", "default"): 3,
        ("cached", "default"): 2,
        ("generated", "default"): 6,
    }
    model = counts.of(MODEL)
    assert sum(model.total_s.counts) == 1
    assert (model.prompt_tokens.total, model.generated_tokens.total) == (3.0, 6.0)


def test_a_line_has_the_id_of_the_body_and_nothing_of_the_text(observed):
    observed.post(prompt="a secret", request_id="mine", user="somebody", stop=["a secret stop"])
    line = observed.line()
    assert line["request_id"] == "mine"
    for text in ("secret", "hello", "somebody", KEY):
        assert text not in observed.lines[0]


def test_a_probe_of_a_server_that_is_not_ready_counts_as_a_request_and_as_no_refusal(observed):
    observed.server.lifecycle.begin_draining()
    assert httpx.get(f"{observed.server.url}/health/ready").status_code == 503
    wait_until(lambda: bool(observed.requests()))
    assert observed.requests() == {("/health/ready", "503", "none"): 1}
    assert not observed.observation.counts.rejections
    assert observed.post().status_code == 503
    wait_until(lambda: bool(observed.observation.counts.rejections))


def test_each_choice_of_each_prompt_has_its_end_and_the_request_one_line(observed):
    observed.post(prompt=["hi", "ho"], n=2, max_tokens=3)
    assert observed.line()["outcome"] == "length"
    assert observed.ends() == {"length": 4}
    assert sum(observed.requests().values()) == 1
    assert observed.observation.counts.tokens["prompt", "default"] == 6


def test_a_stream_counts_when_it_has_ended(observed):
    assert observed.post(stream=True).text.endswith("[DONE]\n\n")
    assert observed.line()["outcome"] == "stop"
    assert observed.ends() == {"stop": 1}


def test_an_error_in_the_midst_of_a_stream_is_the_outcome(observed):
    observed.engine.fails_after, observed.engine.failure = 2, EngineDeadError("it died")
    assert '"error"' in observed.post(stream=True).text
    line = observed.line()
    assert (line["status"], line["outcome"]) == (200, "engine_dead")
    assert observed.ends() == {"error": 1}
    assert observed.requests() == {(COMPLETIONS, "200", "default"): 1}
    assert not observed.observation.counts.rejections


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_an_outcome_too(observed, stream):
    observed.engine.delay_s = 0.02
    observed.leave(stream=stream, ignore_eos=True, max_tokens=4000)
    line = observed.line()
    assert line["outcome"] == "client_gone"
    assert line["status"] == (200 if stream else 499)
    assert observed.ends() == {"abort": 1}
    assert not observed.observation.counts.rejections


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_cut_off_by_the_servers_end_is_one(observed, stream):
    observed.engine.delay_s = 0.02
    lifecycle = observed.server.lifecycle
    body = json.dumps({"model": MODEL, "prompt": "hi", "stream": stream, "max_tokens": 4000})
    body = body[:-1] + ', "ignore_eos": true}'
    with socket.create_connection(("127.0.0.1", observed.server.port)) as connection:
        connection.sendall(
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        wait_until(lambda: bool(observed.engine.running))
        work = next(iter(lifecycle._work))
        work.get_loop().call_soon_threadsafe(lifecycle.cut_off)
        line = observed.line()
    assert line["outcome"] == "cut_off"
    assert line["status"] == (200 if stream else 503)
    assert observed.ends() == {"abort": 1}


@pytest.mark.parametrize(
    ("path", "fields", "status", "reason", "endpoint"),
    [
        (COMPLETIONS, {"model": "x\ny"}, 404, "model_not_found", COMPLETIONS),
        (COMPLETIONS, {"top_p": 7}, 400, "invalid_value", COMPLETIONS),
        (COMPLETIONS, {"prompt": "x" * 2000}, 413, "body_too_large", COMPLETIONS),
        ("/v1/nothing/here", {}, 404, "not_found", "other"),
        ("/v1/models", {}, 405, "method_not_allowed", "/v1/models"),
        ("/completions", {"top_p": 7}, 400, "invalid_value", COMPLETIONS),
    ],
)
def test_what_is_refused_counts_by_its_reason(observed, path, fields, status, reason, endpoint):
    assert observed.post(path, **fields).status_code == status
    line = observed.line()
    assert (line["status"], line["outcome"], line["endpoint"]) == (status, reason, endpoint)
    assert observed.requests() == {(endpoint, str(status), "default"): 1}
    assert dict(observed.observation.counts.rejections) == {(reason, "default"): 1}
    assert "\n" not in observed.lines[0]


def test_a_full_queue_is_a_rejection_of_its_caller(observed):
    observed.engine.refusal = QueueFullError("full", retry_after_s=1)
    assert observed.post().status_code == 429
    assert observed.line()["outcome"] == "queue_full"
    assert dict(observed.observation.counts.rejections) == {("queue_full", "default"): 1}
    assert observed.ends() == {}


def test_who_has_no_key_is_nobody(observed):
    assert httpx.get(f"{observed.server.url}/v1/models").status_code == 401
    assert observed.line()["caller"] == "none"
    assert observed.requests() == {("/v1/models", "401", "none"): 1}
    assert dict(observed.observation.counts.rejections) == {("invalid_api_key", "none"): 1}


def test_health_and_scrapes_count_and_have_no_line(observed):
    headers = {"authorization": f"Bearer {KEY}"}
    for path in ("/health", "/health/live", "/metrics"):
        assert httpx.get(observed.server.url + path, headers=headers).status_code == 200
    assert httpx.get(f"{observed.server.url}/metrics").status_code == 401
    assert observed.line()["endpoint"] == "/metrics"
    assert observed.requests() == {
        ("/health/ready", "200", "none"): 1,
        ("/health/live", "200", "none"): 1,
        ("/metrics", "200", "default"): 1,
        ("/metrics", "401", "none"): 1,
    }


def test_a_slow_body_shows_in_the_parts_of_a_slow_request(observed):
    observed.observation.log = RequestLog(observed.lines.append, as_json=True, slow_s=0.2)
    body = json.dumps({"model": MODEL, "prompt": "hi"}).encode()
    with socket.create_connection(("127.0.0.1", observed.server.port)) as connection:
        connection.sendall(
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        connection.settimeout(0.4)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.sendall(body)
        connection.settimeout(10)
        assert connection.recv(100)
    line = observed.line()
    assert line["slow"] is True
    assert 0.3 < line["body_s"] <= line["total_s"]
    assert line["render_s"] < line["body_s"]


async def handler(request: object) -> Any: ...


def test_labels_are_the_declared_paths_whatever_is_asked():
    label_of = label_rule(
        [
            Endpoint(
                method="GET", path="/health", tag="x", handler=handler, other_paths=("/ping",)
            ),
            Endpoint(method="GET", path="/v1/models/{name:path}", tag="x", handler=handler),
            Endpoint(method="GET", path="/v1/models", tag="x", handler=handler),
        ]
    )
    assert label_of("/v1/health") == label_of("/ping") == "/health"
    assert label_of("/models") == "/v1/models"
    assert label_of("/v1/models/owner/name:branch") == "/v1/models/{name:path}"
    for path in ("/", "//v1/models", "/v1/../health", "/x" * 5000, "", "*"):
        assert label_of(path) == "other"


def test_a_line_says_who_asks(observed):
    observed.post()
    assert observed.line()["address"] == "127.0.0.1"


def test_a_body_that_does_not_come_is_no_client_that_left(observed):
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", observed.server.port), timeout=10) as connection:
        chunk = "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        connection.sendall((head + chunk).encode())
        assert connection.recv(20).startswith(b"HTTP/1.1 400")
    line = observed.line()
    assert (line["status"], line["outcome"]) == (400, "invalid_http")
    assert not observed.observation.counts.rejections  # the connection counts it


def test_a_request_that_the_connection_refused_has_the_status_that_its_client_got(observed):
    """Not that of an answer which came too late to be sent: here 401, as there is no key."""
    connection = socket.create_connection(("127.0.0.1", observed.server.port))
    connection.sendall(
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        "transfer-encoding: chunked\r\n\r\nzz\r\n".encode()
    )
    assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    line = observed.line()
    assert (line["status"], line["outcome"]) == (400, "invalid_http")
    assert [(path, status) for path, status, _ in observed.requests()] == [(COMPLETIONS, "400")]
    connection.close()
