"""A server without a key does nothing for the pages that a browser on its machine shows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from service.api.application import create_app
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    says,
    served_model,
)
from tests.service.kept_batches import batching, jsonl, line

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Message

EVIL = "http://evil.example"
JSON = {"content-type": "application/json"}
BODY = b'{"model": "%s", "prompt": "hi"}' % MODEL.encode()


def ask(
    path: str = "/v1/models",
    headers: list[tuple[str, str]] | dict[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes = b"",
    key: str | None = None,
    origins: tuple[str, ...] = (),
) -> httpx.Response:
    """Ask a server in this process; Host is localhost where the headers name none."""
    tokenizer = ByteTokenizer()
    models = FakeModels(served_model(FakeEngine(says(tokenizer, "yes")), tokenizer))
    keys = None if key is None else ApiKeys(key)
    app = create_app(api_context(Lifecycle(models), models), keys, cors_origins=origins)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, content=body)

    return asyncio.run(send())


def post(
    headers: dict[str, str] | list[tuple[str, str]], path: str = "/v1/completions", **others: object
) -> httpx.Response:
    return ask(path, headers, method="POST", body=BODY, **others)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LocalHost:80", "localhost.", "my.localhost:3000"),
        *("127.0.0.1", "127.0.0.1:8000", "127.1.2.3", "[::1]", "[::1]:8000"),
    ],
)
def test_loopback_names_are_answered(host):
    assert ask(headers={"host": host}).status_code == 200
    assert post({**JSON, "host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "notlocalhost", "x"),
        *("127.0.0.1.evil.example", "192.168.0.7:8000", "0.0.0.0:8000", "[::]:8000", "[fe80::1]"),
        *("localhost:8000@evil.example", "evil.example/localhost", "localhost evil", "", ":8000"),
        *("2130706433", "127.1", "localhost,evil.example", "[::1", "::1", "localhost:port"),
    ],
)
def test_other_names_may_be_a_pages_own_and_are_refused(host):
    for response in (ask(headers={"host": host}), post({**JSON, "host": host})):
        assert response.status_code == 403
        error = response.json()["error"]
        assert error["code"] == "host_not_allowed"
        assert "localhost" in error["message"]
        assert "set a key" in error["message"]
        assert "evil" not in error["message"]


def test_health_is_answered_to_loopback_names_only():
    assert ask("/health/live", {"host": "127.0.0.1:8000"}).status_code == 200
    assert ask("/health/live", {"host": "evil.example"}).status_code == 403


def test_two_names_are_refused_unless_both_are_loopback():
    assert ask(headers=[("host", "localhost"), ("host", "evil.example")]).status_code == 403


def test_errors_have_the_shape_of_the_path():
    response = post({**JSON, "host": "evil.example"}, "/generate")
    assert response.status_code == 403
    assert response.json()["error_type"] == "host_not_allowed"
    response = post({"content-type": "text/plain"}, "/generate")
    assert response.status_code == 415
    assert response.json()["error_type"] == "validation"


def test_request_without_a_name_is_no_browsers():
    """HTTP/1.0 needs none, and load balancers probe so."""
    models = FakeModels(None)
    app = create_app(api_context(Lifecycle(models), models), None)
    sent: list[Message] = []
    scope = {
        "type": "http",
        "http_version": "1.0",
        "method": "GET",
        "path": "/health/live",
        "raw_path": b"/health/live",
        "query_string": b"",
        "headers": [],
    }

    async def test() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(test())
    assert sent[0]["status"] == 200


@pytest.mark.parametrize(
    "types",
    [
        [],
        ["text/plain"],
        ["text/plain;charset=application/json"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=x"],
        ["application/json", "text/plain"],
        ["text/plain", "application/json"],
        ["application/json, text/plain"],
        ["application/jsonp"],
        [""],
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/infill", "/tokenize", "/no/such/path"]
)
def test_only_json_is_taken_as_a_body(types, path):
    response = post([("content-type", found) for found in types], path)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "found", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
def test_json_is_taken_however_it_is_written(found):
    assert post({"content-type": found}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        *(EVIL, "https://evil.example", "null", "", "http://localhost.evil.example", "localhost"),
        *("http://192.168.0.7", "chrome-extension://abcdef", "http://evil.example/localhost"),
    ],
)
def test_pages_of_other_origins_are_refused_whatever_they_ask_for(origin):
    for response in (ask(headers={"origin": origin}), post({**JSON, "origin": origin})):
        assert response.status_code == 403
        error = response.json()["error"]
        assert error["code"] == "origin_not_allowed"
        assert "cors_origins" in error["message"]


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:8000", "http://127.0.0.1:3000", "https://app.localhost", "http://[::1]"],
)
def test_pages_of_this_machine_are_let_in(origin):
    assert post({**JSON, "origin": origin}).status_code == 200


def test_pages_that_the_settings_name_are_let_in():
    page = "https://chat.example.org"
    assert post({**JSON, "origin": page}, origins=(page,)).status_code == 200
    assert post({**JSON, "origin": EVIL}, origins=(page,)).status_code == 403
    assert post({**JSON, "origin": EVIL}, origins=("*",)).status_code == 200
    named = {**JSON, "origin": page, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    assert post(named, origins=(page,)).status_code == 200
    asked = {"origin": page, "access-control-request-method": "POST"}
    response = ask("/v1/completions", asked, method="OPTIONS", origins=(page,))
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),  # an image, a script
        ("cross-site", "cors", 403),
        ("cross-site", "navigate", 200),  # a link to the documents
        ("same-site", "no-cors", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),  # typed
    ],
)
def test_requests_that_name_no_origin_are_told_by_what_browsers_say(site, mode, status):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert ask(headers=headers).status_code == status


def test_form_that_is_sent_by_a_link_is_refused():
    headers = {**JSON, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert post(headers).status_code == 403


def test_server_with_a_key_is_asked_by_any_name():
    headers = {"authorization": "Bearer sk-1", "host": "gpu.example.org", "origin": EVIL}
    assert ask(headers=headers, key="sk-1").status_code == 200
    assert post({**headers, **JSON}, key="sk-1").status_code == 200


# ── forms, which are taken where files are ──────────────────────────────────────────────────────


def send_file(
    folder: Path, headers: dict[str, str], *, key: str | None = None, path: str = "/v1/files"
) -> httpx.Response:
    async def check() -> httpx.Response:
        async with batching(folder, key=key) as client:
            return await client.http.post(
                path,
                files={"file": ("a", jsonl(line("a")))},
                data={"purpose": "batch"},
                headers=headers,
            )

    return asyncio.run(check())


@pytest.mark.parametrize("path", ["/v1/files", "/files"])
def test_a_program_may_send_a_file(tmp_path, path):
    assert send_file(tmp_path, {}, path=path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": "http://localhost"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_no_page_may_send_a_file_to_a_server_without_a_key(tmp_path, headers):
    answer = send_file(tmp_path, headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert not (tmp_path / "files").exists()


def test_with_a_key_a_page_may_send_a_file(tmp_path):
    assert send_file(tmp_path, {"origin": EVIL}, key="sk-key").status_code == 200


def test_forms_are_taken_nowhere_else():
    answer = ask(
        "/v1/completions",
        {"content-type": "multipart/form-data; boundary=abc"},
        method="POST",
        body=b"--abc--",
    )
    assert answer.status_code == 415
