"""By which paths endpoints are reached."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from service.api.endpoint import Access, Endpoint
from tests.service.fakes import MODEL, FakeEngine, running_server, says


async def handler(_):
    """Do nothing."""


@pytest.mark.parametrize(
    ("path", "access", "paths"),
    [
        ("/v1/models", Access.CALLER, ("/v1/models", "/models")),
        ("/tokenize", Access.CALLER, ("/tokenize", "/v1/tokenize")),
        ("/", Access.CALLER, ("/",)),
        ("/health", Access.OPEN, ("/health",)),
        ("/admin/x", Access.ADMIN, ("/admin/x",)),
    ],
)
def test_what_callers_use_is_reached_with_v1_and_without(path, access, paths):
    endpoint = Endpoint(method="GET", path=path, tag="Test", handler=handler, access=access)
    assert endpoint.paths == paths


@pytest.fixture(scope="module")
def url(tiny_tokenizer):
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as server:
        yield server.url


@pytest.mark.parametrize("base", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completions", {"prompt": "a"}),
        ("/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/responses", {"input": "a"}),
        ("/completions/render", {"prompt": "a"}),
        ("/chat/completions/render", {"messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [5]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "a"}]}),
        ("/generate", {"inputs": "a"}),
        ("/generate_stream", {"inputs": "a"}),
        ("/models", None),
        (f"/models/{MODEL}", None),
        ("/info", None),
        ("/version", None),
    ],
)
def test_both_bases_work(url, base, path, body):
    response = (
        httpx.get(url + base + path) if body is None else httpx.post(url + base + path, json=body)
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/health/ready", "/ping", "/version", "/v1/models", "/info"]
)
def test_head_is_answered_as_get_is_and_has_no_body(url, path):
    with httpx.Client() as client:
        head, get = client.head(url + path), client.get(url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert get.json()
