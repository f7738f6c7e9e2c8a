"""TLS, proxies and the path before every path, with real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import openai
import pytest
import uvicorn
import uvloop

from service.api.application import create_app
from service.server.connections import Closed, Connections
from service.server.front import Front
from service.server.lifecycle import Lifecycle
from service.server.limits import ConnectionLimits
from service.server.tls import make_tls
from service.team.keys import ApiKeys
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    running_server,
    says,
    wait_until,
)
from tests.service.processes import serving
from tests.service.server.certificates import make_certificate, needs_openssl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def fronted(front: Front) -> Iterator[str]:
    """Run a server; give its address behind the scheme."""
    tokenizer = ByteTokenizer()
    with running_server(FakeEngine(says(tokenizer, "yes")), tokenizer, front=front) as server:
        yield f"127.0.0.1:{server.port}"


@needs_openssl
def test_official_client_speaks_tls_streams_included(tmp_path: Path):
    certificate, key = make_certificate(tmp_path)
    front = Front(tls=make_tls(certificate, key))
    assert front.scheme == "https"
    with fronted(front) as address:
        trusting = httpx.Client(verify=ssl.create_default_context(cafile=str(certificate)))
        with openai.OpenAI(
            base_url=f"https://{address}/v1", api_key="none", http_client=trusting
        ) as client:
            whole = client.completions.create(model=MODEL, prompt="hi", max_tokens=5)
            stream = client.completions.create(model=MODEL, prompt="hi", max_tokens=5, stream=True)
            assert whole.choices[0].text == "yes"
            assert "".join(chunk.choices[0].text for chunk in stream) == "yes"
        with httpx.Client() as plain, pytest.raises(httpx.TransportError):
            plain.get(f"http://{address}/health/live")


@needs_openssl
@pytest.mark.slow
def test_server_process_says_https_and_half_a_handshake_ends_in_time(tmp_path: Path):
    certificate, key = make_certificate(tmp_path)
    settings = {"tls_certificate": str(certificate), "tls_key": str(key), "header_timeout_s": 1}
    with serving(tmp_path, ready=False, **settings) as server:
        assert server.url.startswith("https://")
        url = httpx.URL(server.url)
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context) as client:
            assert client.get(f"{server.url}/health/live").json() == {"status": "alive"}
        with socket.create_connection((url.host, url.port or 0), timeout=10) as half:
            half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            began = time.monotonic()
            assert half.recv(100) == b""
            assert time.monotonic() - began < 5


@needs_openssl
@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"tls_certificate": "/no/such/file"}, {"tls_key": "/a"}])
def test_wrong_certificate_is_told_before_anything_is_loaded(tmp_path: Path, wrong):
    with serving(tmp_path, ready=False, **wrong) as server:
        assert server.popen.wait(20) != 0
    assert "tls_certificate" in server.log()


def scopes_of(front: Front, *requests: bytes) -> list[dict[str, Any]]:
    """Return what an application is told of these requests, by one server."""
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def ask() -> None:
        server = uvicorn.Server(front.config(app))
        server.config.load()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await front.accept(server, [listener])
            for request in requests:
                import asyncio

                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(request)
                await reader.readline()
                writer.close()
            for one in server.servers:
                one.close()

    uvloop.run(ask())
    return seen


def get(path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"host: x", *headers]) + b"\r\n\r\n"


FORWARDED = get(b"/", b"x-forwarded-for: 203.0.113.9, 10.0.0.1", b"x-forwarded-proto: https")


def test_forwarded_address_is_believed_of_trusted_proxies_alone():
    trusting = Front(trusted_proxies=["127.0.0.0/8", "10.0.0.0/8"])
    (scope,) = scopes_of(trusting, FORWARDED)
    assert (scope["client"][0], scope["scheme"]) == ("203.0.113.9", "https")
    for front in (Front(), Front(trusted_proxies=["192.0.2.1"])):
        (scope,) = scopes_of(front, FORWARDED)
        assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")


def test_root_path_is_taken_off_where_a_proxy_left_it():
    paths = [b"/api/v1/models", b"/v1/models", b"/api", b"/apis"]
    scopes = scopes_of(Front(root_path="/api"), *map(get, paths))
    assert [scope["path"] for scope in scopes] == ["/v1/models", "/v1/models", "/", "/apis"]
    assert {scope["root_path"] for scope in scopes} == {""}


def test_root_path_opens_nothing_and_documents_say_it():
    tokenizer = ByteTokenizer()
    models = FakeModels(None)
    lifecycle = Lifecycle(models)
    app = create_app(api_context(lifecycle, models), ApiKeys("sk-1"), root_path="/api")
    del tokenizer
    front = Front(root_path="/api")
    server = uvicorn.Server(front.config(app))
    import threading

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            key = {"authorization": "Bearer sk-1"}
            assert client.get("/api/health/live").status_code == 200
            assert client.get("/api/admin/models").status_code == 401
            assert client.get("/api/v1/models").status_code == 401
            document = client.get("/api/openapi.json", headers=key).json()
            assert document["servers"] == [{"url": "/api"}]
            assert document == client.get("/openapi.json", headers=key).json()
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def test_connections_are_counted_by_how_they_ended():
    connections = Connections(ConnectionLimits(first_byte_timeout_s=0.2, idle_timeout_s=0.2))
    with fronted(Front(connections=connections)) as address:
        host, port = address.split(":")
        silent = socket.create_connection((host, int(port)), timeout=10)
        idle = socket.create_connection((host, int(port)), timeout=10)
        idle.sendall(get(b"/health/live"))
        bad = socket.create_connection((host, int(port)), timeout=10)
        bad.sendall(b"x y z\r\n\r\n")
        assert json.loads(bad.recv(4096).partition(b"\r\n\r\n")[2])["error"]["code"]
        bad.close()
        wait_until(lambda: connections.num_open == 0)
        silent.close()
        idle.close()
    assert connections.closed == {Closed.FIRST_BYTE: 1, Closed.IDLE: 1, Closed.REFUSED: 1}
    assert connections.refused == {"invalid_http": 1}
