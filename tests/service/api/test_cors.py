"""Pages of other origins: those that the settings name may call, nobody else."""

from __future__ import annotations

import asyncio

import httpx2 as httpx
import pytest

from service.api.application import create_app
from service.api.headers import exposed
from service.server.lifecycle import Lifecycle
from service.team.keys import ApiKeys
from tests.service.fakes import (
    ByteTokenizer,
    FakeEngine,
    FakeModels,
    api_context,
    says,
    served_model,
)

PAGE = "https://chat.example.org"
ASKED = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-api-key,x-stainless-os",
}


def ask(method: str, path: str, headers: dict[str, str], origins: tuple[str, ...]):
    """Ask a server that has a key, in this process."""
    tokenizer = ByteTokenizer()
    models = FakeModels(served_model(FakeEngine(says(tokenizer, "yes")), tokenizer))
    app = create_app(api_context(Lifecycle(models), models), ApiKeys("sk-1"), cors_origins=origins)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize(("origins", "allowed"), [((PAGE,), PAGE), (("*",), "*")])
def test_browser_is_answered_before_the_key(origins, allowed):
    response = ask("OPTIONS", "/v1/chat/completions", ASKED, origins)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == allowed
    assert "POST" in response.headers["access-control-allow-methods"]
    granted = response.headers["access-control-allow-headers"]
    assert set(ASKED["access-control-request-headers"].split(",")) <= set(granted.split(","))
    assert "access-control-allow-credentials" not in response.headers
    assert "x-request-id" in response.headers


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
def test_key_is_asked_for_all_the_same_and_the_page_can_read_why(origins):
    response = ask("GET", "/v1/models", {"origin": PAGE}, origins)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["access-control-allow-origin"] in (PAGE, "*")
    headers = {"origin": PAGE, "authorization": "Bearer sk-1"}
    response = ask("GET", "/v1/models", headers, origins)
    assert response.status_code == 200
    readable = response.headers["access-control-expose-headers"].split(", ")
    assert readable == exposed()
    assert {"x-request-id", "x-ignored-params", "retry-after", "x-kernel"} <= set(readable)


@pytest.mark.parametrize(
    "origin",
    ["https://chat.example.org.evil.com", "http://chat.example.org", f"{PAGE}:8443", "null", ""],
)
def test_other_origins_are_refused_in_our_words(origin):
    response = ask("OPTIONS", "/v1/models", {**ASKED, "origin": origin}, (PAGE,))
    assert response.status_code == 400
    assert "cors_origins" in response.json()["error"]["message"]
    assert "access-control-allow-origin" not in response.headers
    headers = {"origin": origin, "authorization": "Bearer sk-1"}
    response = ask("GET", "/v1/models", headers, (PAGE,))
    assert "access-control-allow-origin" not in response.headers


def test_method_that_no_path_takes_is_refused():
    asked = {**ASKED, "access-control-request-method": "PATCH"}
    response = ask("OPTIONS", "/v1/models", asked, (PAGE,))
    assert response.status_code == 400
    assert "method" in response.json()["error"]["message"]


def test_without_origins_no_page_is_answered():
    response = ask("OPTIONS", "/v1/models", ASKED, ())
    assert response.status_code == 401
    response = ask("OPTIONS", "/v1/models", {**ASKED, "authorization": "Bearer sk-1"}, ())
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", [(), (PAGE,)])
def test_options_that_no_browser_sent_is_answered_as_any_method(origins):
    headers = {"authorization": "Bearer sk-1"}
    assert ask("OPTIONS", "/v1/models", headers, origins).status_code == 405
    assert ask("OPTIONS", "/v1/models", {}, origins).status_code == 401
