"""The key: every route asks for it but health, whatever the request looks like."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import httpx2 as httpx
import openai
import pytest

from service.api.application import endpoints_of
from service.api.endpoint import Access
from service.server.lifecycle import Lifecycle
from tests.service.fakes import (
    MODEL,
    FakeEngine,
    FakeModels,
    RunningServer,
    api_context,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

KEY = "sk-correct-horse"


@pytest.fixture(scope="module")
def server(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(
        FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer, key=KEY
    ) as running:
        yield running


def raw(server: RunningServer, request: bytes) -> bytes:
    """Send bytes as they are; return the status line's number."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(100).split()[1]


def test_every_route_asks_for_the_key_but_health(server):
    models = FakeModels(None)
    listed = endpoints_of(api_context(Lifecycle(models), models))
    paths = {path for endpoint in listed for path in endpoint.paths}
    open_paths = {
        p for endpoint in listed for p in endpoint.paths if endpoint.access is Access.OPEN
    }
    assert open_paths >= {"/health", "/health/live", "/health/ready"}
    paths |= {"/openapi.json", "/docs", "/metrics", "/"}
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE")
    with httpx.Client(base_url=server.url) as client:
        for path, method in itertools.product(paths, methods):
            response = client.request(method, path.replace("{name}", "x"))
            if path in open_paths:
                assert response.status_code == (200 if method in ("GET", "HEAD") else 405)
            else:
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                assert "x-request-id" in response.headers


def test_right_key_opens(server):
    client = server.client(KEY)
    assert client.models.list().data[0].id == MODEL
    assert client.completions.create(model=MODEL, prompt="hi").choices[0].text == "yes"
    headers = {"authorization": f"bearer  {KEY}"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_wrong_key_is_the_clients_authentication_error(server):
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client("sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer " + KEY.encode() + b"x",
        b"Bearer " + KEY.encode()[:-1],
        b"Bearer x " + KEY.encode(),
        b"Basic " + KEY.encode(),
        KEY.encode(),
        "Bearer schlüssel".encode("latin-1"),
        b"Bearer \xff\xfe",
    ],
)
def test_anything_but_the_key_is_refused(server, value):
    headers = {"authorization": value}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401


def test_key_of_a_megabyte_is_refused(server):
    try:
        status = httpx.get(
            f"{server.url}/v1/models", headers={"authorization": "Bearer " + "x" * 1_000_000}
        ).status_code
    except httpx.NetworkError:
        return  # cut off before the answer
    assert status in (400, 401, 431)


def test_two_keys_are_refused_even_if_one_is_right(server):
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        b"//v1/models",
        b"/v1/../health/../v1/models",
        b"/health/../v1/models",
        b"/health%2e%2e/v1/models",
        b"/%2e/v1/models",
        b"/v1/models?/health",
        b"/v1/models;/health",
        b"/V1/models",
        b"/health/",
        b"/health/ready/x",
        b"http://x/v1/models",
        b"http://health/v1/models",
        b"*",
    ],
)
def test_no_spelling_of_a_path_gets_past(server, target):
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x/health?\r\nConnection: close\r\n\r\n"
    assert raw(server, request) in (b"400", b"401")


def test_a_token_for_metrics_opens_them_and_nothing_else(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, key=KEY, metrics_token="scrape") as server:
        assert status_with(server, "/metrics", "scrape") == 200
        assert status_with(server, "/metrics", KEY) == 200
        assert status_with(server, "/metrics", "other") == 401
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert status_with(server, "/v1/models", "scrape") == 401


def test_metrics_ask_for_their_token_where_nothing_else_asks_for_a_key(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer, metrics_token="scrape") as server:
        assert status_with(server, "/metrics", "scrape") == 200
        assert status_with(server, "/metrics", "other") == 401
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/v1/models").status_code == 200


def status_with(server: RunningServer, path: str, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(server.url + path, headers=headers).status_code


def test_headers_do_not_move_the_path(server):
    def asked_by(host: bytes) -> bytes:
        return (
            b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\nX-Forwarded-Prefix: /health\r\n"
            b"X-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nConnection: close\r\n\r\n"
        )

    assert raw(server, asked_by(b"x")) == b"401"
    assert raw(server, asked_by(b"x/health?")) == b"400"  # no host is named so


def test_without_a_key_set_nobody_is_asked(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
