"""The headers that a key may come in, on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.fakes import (
    ByteTokenizer,
    FakeEngine,
    RunningServer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-correct-horse"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    tokenizer = ByteTokenizer()
    with running_server(FakeEngine(says(tokenizer, "yes")), tokenizer, key=KEY) as running:
        yield running


def status(server: RunningServer, *headers: tuple[str, str | bytes]) -> int:
    response = httpx.get(f"{server.url}/v1/models", headers=list(headers))
    if response.status_code == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text
    return response.status_code


@pytest.mark.parametrize("name", ["x-api-key", "X-API-Key", "api-key"])
def test_key_opens_by_its_other_headers(server, name):
    assert status(server, (name, KEY)) == 200
    assert status(server, (name, KEY), ("authorization", f"Bearer {KEY}")) == 200
    assert status(server, (name, KEY), ("authorization", "Bearer placeholder")) == 200


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
@pytest.mark.parametrize(
    "value",
    [b"", b"x", KEY.encode() + b"x", b"Bearer " + KEY.encode(), "schlüssel".encode("latin-1")],
)
def test_anything_but_the_key_is_refused(server, name, value):
    assert status(server, (name, value)) == 401
    assert status(server, (name, value), ("authorization", "Bearer x")) == 401


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_same_header_twice_is_refused_even_if_one_is_right(server, name):
    assert status(server, (name, KEY), (name, "x")) == 401


def test_key_in_the_query_does_not_open(server):
    for query in (f"api_key={KEY}", f"key={KEY}", f"api-key={KEY}"):
        assert httpx.get(f"{server.url}/v1/models?{query}").status_code == 401
